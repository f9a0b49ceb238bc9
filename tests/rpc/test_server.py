"""The listener: who gets in, what is offered, how it binds, which channel arguments really work."""

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.fake_engine import FakeEngine, FakeStream, end_at_once
from tests.support.rpc import CONFIG, open_door, prompt, read, refusal
from tests.support.stack import free_port
from tokenwire.v1 import models_pb2, models_pb2_grpc
from tokenwire.v1 import text_generation_pb2_grpc as pb_grpc
from tokenwire_service.errors import StartupError
from tokenwire_service.observability.telemetry import NullTelemetry
from tokenwire_service.rpc import channel
from tokenwire_service.rpc.server import SERVICES, RpcServer
from tokenwire_service.rpc.serving import Serving


async def failed(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


async def listed_services(target: grpc.aio.Channel) -> set[str]:
    call = reflection_pb2_grpc.ServerReflectionStub(target).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()
    answer = await call.read()
    return {service.name for service in answer.list_services_response.service}


async def test_reflection_lists_every_service() -> None:
    async with open_door() as door:
        assert await listed_services(door.channel) == {
            *SERVICES,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("tokenwire.v1.TextGenerationService", "text_generation"),
        ("tokenwire.v1.TextGenerationService.ChatStream", "text_generation"),
        ("tokenwire.v1.SamplingParams.top_p", "types"),
        ("tokenwire.v1.TextGenerationService.Nothing", None),
    ],
)
async def test_reflection_finds_services_methods_and_fields(symbol: str, file: str | None) -> None:
    async with open_door() as door:
        call = reflection_pb2_grpc.ServerReflectionStub(door.channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        await call.done_writing()
        answer = await call.read()
    if file is None:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    else:
        found = [
            FileDescriptorProto.FromString(raw).name for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert f"tokenwire/v1/{file}.proto" in found


async def test_reflection_can_be_left_out() -> None:
    async with open_door(reflection=False) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed_services(door.channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer wrong"),), (("authorization", "Basic secret"),), (("authorization", "secret"),)],
)
async def test_without_the_right_token_nobody_gets_in(metadata: Any) -> None:
    async with open_door(api_key="secret") as door:
        models = models_pb2_grpc.ModelServiceStub(door.channel)
        for call in (
            door.generation.Generate(prompt(), metadata=metadata),
            read(door.generation.GenerateStream(prompt(), metadata=metadata)),
            models.ListModels(models_pb2.ListModelsRequest(), metadata=metadata),
            door.channel.unary_unary("/tokenwire.v1.ModelService/Nope")(b"", metadata=metadata),
        ):
            found = await failed(call)
            assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
            assert found.trailers["x-request-id"]
        assert not door.engine.streams
        health = health_pb2_grpc.HealthStub(door.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)).status
        assert await listed_services(door.channel)


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret"])
async def test_the_right_token_gets_in(header: str) -> None:
    async with open_door(api_key="secret") as door:
        assert (await door.generation.Generate(prompt(), metadata=(("authorization", header),))).candidates


async def test_a_request_id_is_echoed_or_made() -> None:
    async with open_door() as door:
        call = door.generation.Generate(prompt(), metadata=(("x-request-id", "abc-1"),))
        assert dict(await call.initial_metadata())["x-request-id"] == "abc-1"
        await call
        assert len(dict(await door.generation.GenerateStream(prompt()).initial_metadata())["x-request-id"]) == 32
        found = await failed(door.generation.Generate(prompt(text=""), metadata=(("x-request-id", "abc-2"),)))
        assert found.trailers["x-request-id"] == "abc-2"
        assert found.details["RequestInfo"].request_id == "abc-2"


async def test_a_taken_port_is_one_clear_line() -> None:
    async with open_door() as door:
        second = RpcServer(replace(CONFIG, port=door.server.port), Serving(), NullTelemetry(), "1")
        with pytest.raises(StartupError) as caught:
            await second.start("--grpc-port")
    port = door.server.port
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --grpc-port"
    )


@pytest.mark.parametrize("hostname", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_of_another_machine_names_its_flag(hostname: str) -> None:
    door = RpcServer(replace(CONFIG, hostname=hostname), Serving(), NullTelemetry(), "1")
    with pytest.raises(StartupError, match=rf"cannot listen on {hostname}:.*; choose another with --hostname$"):
        await door.start()


async def test_an_unreadable_certificate_names_its_flag(tmp_path: Path) -> None:
    config = replace(CONFIG, tls_cert_path=str(tmp_path / "no.pem"), tls_key_path=str(tmp_path / "no.key"))
    with pytest.raises(StartupError, match="--tls-key-path"):
        await RpcServer(config, Serving(), NullTelemetry(), "1").start()


def certificate(directory: Path, name: str) -> Path:
    """A key and a self-signed certificate for localhost."""
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.pem"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return directory / name


def contents(*paths: str) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


async def test_files_that_are_no_certificates_name_their_flags(tmp_path: Path) -> None:
    own, other = certificate(tmp_path, "own"), certificate(tmp_path, "other")
    mixed = replace(CONFIG, tls_cert_path=f"{own}.pem", tls_key_path=f"{other}.key")
    with pytest.raises(StartupError, match=r"--tls-cert-path .*own.pem, --tls-key-path .*other.key: not a PEM"):
        await RpcServer(mixed, Serving(), NullTelemetry(), "1").start()
    files = replace(CONFIG, tls_cert_path=f"{own}.pem", tls_key_path=f"{own}.key", tls_client_ca_path=f"{own}.key")
    with pytest.raises(StartupError, match=r"--tls-client-ca-path .*own.key: not PEM certificates"):
        await RpcServer(files, Serving(), NullTelemetry(), "1").start()


async def test_the_largest_limits_are_taken() -> None:
    async with open_door(max_time_limit_s=1e9, max_message_bytes=2**31 - 1, max_concurrent_requests=2**31) as door:
        assert (await door.generation.Generate(prompt())).candidates


async def test_tls_and_client_certificates(tmp_path: Path) -> None:
    server = certificate(tmp_path, "server")
    client = certificate(tmp_path, "client")
    files = {"tls_cert_path": f"{server}.pem", "tls_key_path": f"{server}.key", "tls_client_ca_path": f"{client}.pem"}
    pem, key, chain = contents(f"{server}.pem", f"{client}.key", f"{client}.pem")
    async with open_door(**files) as door:
        target = f"localhost:{door.server.port}"
        known = grpc.ssl_channel_credentials(pem, key, chain)
        async with grpc.aio.secure_channel(target, known) as secure:
            assert (await pb_grpc.TextGenerationServiceStub(secure).Generate(prompt())).candidates
        async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(pem)) as stranger:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.TextGenerationServiceStub(stranger).Generate(prompt(), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_operators_have_channelz_and_the_public_has_not() -> None:
    async with open_door(admin_port=free_port(), api_key="secret") as door:
        assert door.server.admin_port
        async with grpc.aio.insecure_channel(f"127.0.0.1:{door.server.admin_port}") as admin:
            stub = channelz_pb2_grpc.ChannelzStub(admin)
            assert (await failed(stub.GetServers(channelz_pb2.GetServersRequest()))).reason == "CREDENTIALS_INVALID"
            token = (("authorization", "Bearer secret"),)
            assert (await stub.GetServers(channelz_pb2.GetServersRequest(), metadata=token)).server
            assert "grpc.channelz.v1.Channelz" in await listed_services(admin)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channelz_pb2_grpc.ChannelzStub(door.channel).GetServers(
                channelz_pb2.GetServersRequest(), metadata=token
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


PINGING = [
    ("grpc.keepalive_time_ms", 500),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]


def misspelt(config: Any) -> list[tuple[str, int]]:
    return [("grpc.http2.min_recv_ping_interval_without_data_ms", 10)]


async def test_clients_that_ping_through_a_long_wait_are_not_thrown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    thrown_out = asyncio.Event()

    async def never(stream: FakeStream) -> None:
        await stream.wait_closed()

    async def when_the_other_is_out(stream: FakeStream) -> None:
        await thrown_out.wait()
        await end_at_once(stream)

    async with open_door(FakeEngine(when_the_other_is_out), options=PINGING) as ours:
        monkeypatch.setattr("tokenwire_service.rpc.server.channel_options", misspelt)
        async with open_door(FakeEngine(never), options=PINGING) as theirs:
            good = asyncio.ensure_future(read(ours.generation.GenerateStream(prompt())))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await theirs.generation.Generate(prompt())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "ping" in (caught.value.details() or "").lower()
        thrown_out.set()
        assert (await good).of("completed")


def test_every_channel_argument_is_one_that_the_core_knows() -> None:
    core = Path(grpc._cython.cygrpc.__file__).read_bytes()  # type: ignore[attr-defined]
    for key, _ in channel.channel_options(CONFIG):
        assert key.encode() in core, key
