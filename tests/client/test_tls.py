"""TLS: a certificate of our own, a stranger's, and the client's."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

import tokenwire_client as tw
from tests.support.generation_samples import generate_response
from tests.support.scripted_server import ScriptedServer, respond


def make_certificate(folder: Path, name: str, host: str) -> tuple[Path, Path]:
    """A self-signed certificate for `host` and its key, as PEM files."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    return {name: make_certificate(folder, name, "localhost") for name in ("server", "client", "stranger")}


@pytest.fixture
async def secure(certificates) -> AsyncIterator[ScriptedServer]:
    cert, key = certificates["server"]
    server = ScriptedServer()
    await server.start("localhost:0", grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    server.script("Generate", respond(generate_response()))
    yield server
    await server.stop()


async def test_a_trusted_certificate(secure, connect, certificates) -> None:
    cert, _ = certificates["server"]
    for ca in (cert, str(cert), cert.read_bytes()):
        assert (await connect(secure.target, tls=tw.TlsConfig(ca=ca), token="t")("generate", "hi")).id == "gen-1"
    assert secure.attempts["Generate"][0].metadata["authorization"] == "Bearer t"


async def test_a_certificate_for_another_name(secure, connect, certificates) -> None:
    cert, _ = certificates["server"]
    target = secure.target.replace("localhost", "127.0.0.1")
    with pytest.raises(tw.Unavailable):
        await connect(target, tls=tw.TlsConfig(ca=cert), max_retries=0)("generate", "hi")
    named = connect(target, tls=tw.TlsConfig(ca=cert, server_name="localhost"))
    assert (await named("generate", "hi")).id == "gen-1"


@pytest.mark.parametrize("trusted", ["roots", "stranger", "plaintext"])
async def test_a_certificate_not_trusted(secure, connect, certificates, trusted) -> None:
    tls = {"roots": True, "stranger": tw.TlsConfig(ca=certificates["stranger"][0]), "plaintext": False}[trusted]
    with pytest.raises(tw.Unavailable):
        await connect(secure.target, tls=tls, max_retries=0)("generate", "hi")
    assert not secure.attempts["Generate"]


async def test_mutual_tls(connect, certificates) -> None:
    (cert, key), (client_cert, client_key) = certificates["server"], certificates["client"]
    pair = [(key.read_bytes(), cert.read_bytes())]
    server = ScriptedServer()
    await server.start("localhost:0", grpc.ssl_server_credentials(pair, client_cert.read_bytes(), True))
    server.script("Generate", respond(generate_response()))
    known = connect(server.target, tls=tw.TlsConfig(ca=cert, cert=client_cert, key=client_key))
    assert (await known("generate", "hi")).id == "gen-1"
    with pytest.raises(tw.Unavailable):
        await connect(server.target, tls=tw.TlsConfig(ca=cert), max_retries=0)("generate", "hi")
    await server.stop()


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="cert and key"):
        tw.TlsConfig(cert=b"pem")


async def test_a_file_that_is_missing_is_named(connect, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await connect("localhost:1", tls=tw.TlsConfig(ca=tmp_path / "nowhere.pem"))("generate", "hi")
