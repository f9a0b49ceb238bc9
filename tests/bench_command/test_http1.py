"""The small HTTP client on real sockets."""

import asyncio

import pytest

from tests.support.http_server import http_answer, serving
from tokenwire_service.bench_command.http1 import HttpClient, HttpError


async def body_of(client: HttpClient) -> bytes:
    response = await client.request("POST", "/x", {}, b"sent")
    try:
        return await response.body()
    finally:
        response.close()


async def test_a_body_of_known_length_and_one_connection_for_two() -> None:
    async with serving(*[http_answer(b"hello", "Content-Length: 5", "X-A: 1")] * 2) as (url, seen):
        client = HttpClient(url + "/base")
        assert await body_of(client) == b"hello"
        assert len(client._idle) == 1
        assert await body_of(client) == b"hello"
        client.close()
    assert seen[0].startswith(b"POST /base/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert seen[0].endswith(b"\r\n\r\nsent")


async def test_lines_of_a_body_in_chunks_cut_anywhere() -> None:
    chunks = b"4\r\ndata\r\n3;ext=1\r\n: 1\r\n1\r\n\n\r\n6\r\n\r\n\ntwo\r\n0\r\n\r\n"
    async with serving(http_answer(chunks, "Transfer-Encoding: chunked")) as (url, _):
        client = HttpClient(url)
        response = await client.request("GET", "/", {})
        assert [line async for line in response.lines()] == [b"data: 1", b"", b"", b"two"]
        response.close()
        assert len(client._idle) == 1
        client.close()


async def test_a_body_until_the_end_of_the_connection() -> None:
    async with serving(http_answer(b"to the end"), close_after=1) as (url, _):
        client = HttpClient(url)
        assert await body_of(client) == b"to the end"
        assert not client._idle


async def test_an_idle_connection_that_was_closed_is_replaced() -> None:
    async with serving(*[http_answer(b"ok", "Content-Length: 2")] * 2, close_after=1) as (url, seen):
        client = HttpClient(url)
        assert await body_of(client) == b"ok"
        await asyncio.sleep(0.05)
        assert await body_of(client) == b"ok"
        client.close()
    assert len(seen) == 2


async def test_a_connection_not_read_to_the_end_is_not_used_again() -> None:
    async with serving(http_answer(b"12345", "Content-Length: 5")) as (url, _):
        client = HttpClient(url)
        response = await client.request("GET", "/", {})
        response.close()
        assert not client._idle


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        http_answer(b"12", "Content-Length: 5"),
        http_answer(b"", "Content-Length: five"),
        http_answer(b"zz\r\n", "Transfer-Encoding: chunked"),
        http_answer(b"fffffffff\r\n", "Transfer-Encoding: chunked"),
        http_answer(b"5\r\n12", "Transfer-Encoding: chunked"),
        http_answer(b"", "X: " + "y" * 100_000),
        http_answer(b"", *["X: y"] * 300),
        b"",
    ],
)
async def test_what_is_not_http_is_one_error(raw: bytes) -> None:
    async with serving(raw, close_after=1) as (url, _):
        with pytest.raises(HttpError):
            await body_of(HttpClient(url))


async def test_nobody_there() -> None:
    with pytest.raises(HttpError, match="cannot connect"):
        await body_of(HttpClient("http://127.0.0.1:1"))


@pytest.mark.parametrize("url", ["http://", "localhost:80", "ftp://x"])
def test_a_url_that_names_no_server(url: str) -> None:
    with pytest.raises(ValueError, match="give http://HOST:PORT"):
        HttpClient(url)
