"""How a service starts and ends."""

import shutil
import signal
import socket
from pathlib import Path

import grpc
import pytest
from safetensors.torch import load_file, save_file

from tests.support.service_process import NOT_SERVING, SERVING, serving_service, started_service


def the_error(err: Path) -> str:
    """The one line that says why."""
    (line,) = [line for line in err.read_text().splitlines() if "tokenwire: error:" in line]
    assert err.read_text().splitlines()[-1] == line
    assert "Traceback" not in err.read_text()
    return line


def test_sigterm_lets_a_stream_finish_and_refuses_new_ones(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with serving_service(tmp_path, tiny_checkpoint) as service:
        stream = service.stream(1500)
        next(stream)
        health = service.health()
        assert next(health) == SERVING
        service.signal()
        assert next(health) == NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            list(service.stream(1))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert list(stream)[-1].completed.usage.completion_tokens == 1500
        assert service.exit_code() == 0
        assert "Traceback" not in service.err.read_text()


def test_a_second_signal_ends_it_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with serving_service(tmp_path, tiny_checkpoint) as service:
        stream = service.stream(8000)
        next(stream)
        health = service.health()
        assert next(health) == SERVING
        service.signal()
        assert next(health) == NOT_SERVING
        service.signal(signal.SIGINT)
        with pytest.raises(grpc.RpcError) as ended:
            list(stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.exit_code() == 128 + signal.SIGINT


def test_a_grace_that_passes_ends_the_streams(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with serving_service(tmp_path, tiny_checkpoint, ["--graceful-termination-timeout", "0.2"]) as service:
        stream = service.stream(8000)
        next(stream)
        service.signal()
        with pytest.raises(grpc.RpcError) as ended:
            list(stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.exit_code() == 0


def test_the_port_answers_before_the_model_is_loaded_and_sigterm_ends_the_loading(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with started_service(tmp_path, tiny_checkpoint) as service:
        assert next(service.health()) == NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            list(service.stream(1))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        service.signal()
        assert service.exit_code() == 0
        assert "Try it" not in service.out.read_text()
        assert "Traceback" not in service.err.read_text()


def test_a_model_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with started_service(tmp_path, tmp_path / "nothing") as service:
        assert service.exit_code() == 1
        assert "no such directory" in the_error(service.err)


def test_a_checkpoint_without_a_tensor_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with started_service(tmp_path, broken) as service:
        assert service.exit_code() == 1
        assert "model.layers.1.mlp.down_proj.weight" in the_error(service.err)


def test_a_prompt_limit_that_leaves_no_room_is_a_configuration_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with started_service(tmp_path, tiny_checkpoint, ["--max-input-tokens", "8192"]) as service:
        assert service.exit_code() == 2
        assert "--max-input-tokens 8192" in the_error(service.err)


@pytest.mark.parametrize("flag", ["--port", "--prometheus-port"])
def test_a_taken_port_is_one_line(flag: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with started_service(tmp_path, tiny_checkpoint, [flag, str(taken.getsockname()[1])]) as service:
            assert service.exit_code() == 1
            assert flag in the_error(service.err)
