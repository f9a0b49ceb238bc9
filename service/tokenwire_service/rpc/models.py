"""ListModels and GetModel."""

from __future__ import annotations

from tokenwire.v1 import models_pb2 as pb
from tokenwire.v1 import types_pb2
from tokenwire_service.errors import InvalidParameterError
from tokenwire_service.rpc.call import Call
from tokenwire_service.rpc.convert.generate import check_model
from tokenwire_service.rpc.convert.responses import timestamp
from tokenwire_service.rpc.endpoint import Method, Service
from tokenwire_service.rpc.model import SamplingDefaults, ServedModel
from tokenwire_service.rpc.serving import Serving

NAME = "tokenwire.v1.ModelService"
DEFAULT_PAGE, LARGEST_PAGE = 100, 1000


class ModelMethods:
    """Tells which models there are and what they can do."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def service(self) -> Service:
        return Service(
            NAME,
            (
                Method("ListModels", pb.ListModelsRequest, pb.ListModelsResponse, self.list_models),
                Method("GetModel", pb.GetModelRequest, pb.GetModelResponse, self.get_model),
            ),
        )

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        models = [self._serving.require_model()]
        begin = _page_start(request.page_token, len(models))
        end = begin + min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        return pb.ListModelsResponse(
            models=[model_message(model) for model in models[begin:end]],
            next_page_token=str(end) if end < len(models) else "",
        )

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        model = self._serving.require_model()
        check_model(request.model, model)
        return pb.GetModelResponse(model=model_message(model))


def _page_start(token: str, num_models: int) -> int:
    if not token:
        return 0
    if token.isascii() and token.isdecimal() and len(token) < 10 and 0 < int(token) < num_models:
        return int(token)
    raise InvalidParameterError.at("page_token", "is not a token of this server; leave it empty to start over")


def model_message(model: ServedModel) -> pb.Model:
    """The contract's view of a served model."""
    limits = model.limits
    return pb.Model(
        name=model.name,
        source=model.source,
        revision=model.revision,
        architecture=model.architecture,
        create_time=timestamp(model.create_time),
        dtype=model.dtype,
        quantization=model.quantization,
        parameter_count=model.parameter_count,
        vocab_size=model.vocab_size,
        limits=pb.ModelLimits(
            max_context_tokens=limits.max_context_tokens,
            max_prompt_tokens=limits.max_prompt_tokens,
            max_candidates=limits.max_candidates,
            max_stop_sequences=limits.max_stop_sequences,
            max_stop_bytes=limits.max_stop_bytes,
            max_top_n=limits.max_top_n,
        ),
        capabilities=pb.ModelCapabilities(chat=model.chat_template is not None, logprobs=True),
        default_sampling=_sampling(model.default_sampling),
        eos_token_ids=model.eos_token_ids,
    )


def _sampling(own: SamplingDefaults) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(
        temperature=own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        min_p=own.min_p,
        typical_p=own.typical_p,
        repetition_penalty=own.repetition_penalty,
    )
