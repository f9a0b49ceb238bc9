"""Streams written without tasks: coroutines driven by hand, and bursts of many streams' writes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.rpc import open_door, prompt, read
from tokenwire_service.core.events import FinishReason
from tokenwire_service.rpc.driven import Driver
from tokenwire_service.rpc.pump import Bursts, Pump


async def drive(work: Callable[[], Awaitable[None]]) -> None:
    """Drive a coroutine to its end. Raises what it raises."""
    driver = Driver()
    over = driver.start(work())  # type: ignore[arg-type]
    while not over:
        turn = asyncio.Event()
        driver.when_ready(turn.set)
        await turn.wait()
        over = driver.ended()
    assert driver.ended()
    assert not driver.waits


async def test_a_coroutine_that_never_waits_ends_at_once() -> None:
    async def work() -> None:
        pass

    driver = Driver()
    assert driver.ended()
    assert driver.start(work())
    assert driver.ended()


async def test_waits_of_every_kind() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_later(0.01, future.set_result, 7)
    done = loop.create_future()
    done.set_result(1)
    seen: list[int] = []

    async def work() -> None:
        seen.append(await future)
        seen.append(await done)
        await asyncio.sleep(0)
        seen.append(await asyncio.ensure_future(asyncio.sleep(0.01, 9)))

    await drive(work)
    assert seen == [7, 1, 9]


async def test_nothing_goes_on_until_somebody_asks() -> None:
    future = asyncio.get_running_loop().create_future()
    seen: list[int] = []

    async def work() -> None:
        seen.append(await future)

    driver = Driver()
    assert not driver.start(work())
    assert driver.waits
    assert not driver.ended()
    future.set_result(7)
    await asyncio.sleep(0)
    assert not driver.waits
    assert seen == []
    assert driver.ended()
    assert seen == [7]


async def test_what_nobody_asks_about_comes_to_its_end() -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    seen: list[str] = []

    async def work() -> None:
        await first
        await asyncio.sleep(0)
        try:
            await second
        except ValueError:
            seen.append("failed")
            raise

    driver = Driver()
    driver.start(work())
    driver.let_go()
    first.set_result(None)
    loop.call_soon(second.set_exception, ValueError("nobody hears this"))
    for _ in range(6):
        await asyncio.sleep(0)
    assert seen == ["failed"]
    assert driver.ended()


async def test_errors_reach_the_end_and_may_be_caught_on_the_way() -> None:
    loop = asyncio.get_running_loop()

    def broken() -> asyncio.Future[None]:
        future = loop.create_future()
        loop.call_soon(future.set_exception, ValueError("from below"))
        return future

    async def passes_on() -> None:
        await broken()

    async def catches() -> None:
        with pytest.raises(ValueError, match="from below"):
            await broken()

    with pytest.raises(ValueError, match="from below"):
        await drive(passes_on)
    await drive(catches)


async def test_a_cancelled_wait_is_an_end() -> None:
    future = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    asyncio.get_running_loop().call_soon(future.cancel)
    with pytest.raises(asyncio.CancelledError):
        await drive(work)


async def test_streams_are_served_together_once_all_news_are_there() -> None:
    served: list[tuple[str, float]] = []

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def serve(self, now: float) -> None:
            served.append((self.name, now))

    bursts = Bursts()
    pumps: list[Any] = [Noted("a"), Noted("b")]
    for pump in pumps:
        bursts.add(pump)
    assert served == []
    await asyncio.sleep(0)
    (first, now), (second, then) = served
    assert (first, second, now) == ("a", "b", then)
    bursts.add(pumps[1])
    await asyncio.sleep(0)
    assert [name for name, _ in served[2:]] == ["b"]


class Scripted:
    """A session, a call and its writer in one: news by hand, writes that end by hand."""

    def __init__(self) -> None:
        self.done = False
        self.pending: list[str] = []
        self.callback: Callable[[], None] | None = None
        self.messages: list[bytes] = []
        self.at_once = False
        self.left = False
        self._write: asyncio.Future[None] | None = None

    @property
    def writer(self) -> Any:
        return self

    def notify(self, callback: Callable[[], None] | None) -> None:
        self.callback = callback

    def take_now(self, ready: dict[str, bytes] | None) -> list[str] | bytes:
        news, self.pending = self.pending, []
        if "fail" in news:
            raise ValueError("no")
        self.done = "done" in news
        if ready is not None and len(news) == 1 and news[0] in ready:
            return ready[news[0]]
        return news

    def begin_write(self, message: bytes, now: float) -> bool:
        assert self.ended()
        self.messages.append(message)
        if not self.at_once:
            self._write = asyncio.get_running_loop().create_future()
        return self.at_once

    def ended(self) -> bool:
        if self._write is None or not self._write.done():
            return self._write is None
        write, self._write = self._write, None
        write.result()
        return True

    def when_ready(self, callback: Callable[[], None]) -> None:
        assert self._write is not None
        self._write.add_done_callback(lambda _: callback())

    def let_go(self) -> None:
        self.left = True

    async def tell(self, *news: str) -> None:
        self.pending += news
        if len(self.pending) == len(news) and self.callback is not None:
            self.callback()
        await turns()

    async def end_write(self, error: Exception | None = None) -> None:
        assert self._write is not None
        if error is None:
            self._write.set_result(None)
        else:
            self._write.set_exception(error)
        await turns()


async def turns() -> None:
    """Let the loop go round until nothing is left to do."""
    for _ in range(6):
        await asyncio.sleep(0)


async def started(scripted: Any, ready: Any = None) -> asyncio.Task[None]:
    pump = Pump(scripted, scripted, lambda event: str(event).upper().encode(), Bursts(), ready)
    task = asyncio.ensure_future(pump.run())
    await asyncio.sleep(0)
    return task


async def test_one_write_at_a_time_and_news_gather_meanwhile() -> None:
    scripted = Scripted()
    task = await started(scripted)
    await scripted.tell("a", "b")
    assert scripted.messages == [b"A"]
    await scripted.tell("c")
    await scripted.end_write()
    assert scripted.messages == [b"A", b"B"]
    await scripted.tell("d")
    assert scripted.pending == ["c", "d"]
    await scripted.end_write()
    assert scripted.messages == [b"A", b"B", b"C"]
    await scripted.tell("done")
    assert scripted.pending == ["done"]
    await scripted.end_write()
    await scripted.end_write()
    assert scripted.messages == [b"A", b"B", b"C", b"D", b"DONE"]
    assert not task.done()
    await scripted.end_write()
    await task
    assert scripted.callback is None
    assert scripted.left


async def test_a_write_that_ends_before_the_next_news_needs_no_turn_of_its_own() -> None:
    scripted = Scripted()
    task = await started(scripted, {"a": b"ready a"})
    await scripted.tell("a")
    await scripted.end_write()
    await scripted.tell("b")
    await scripted.end_write()
    await scripted.tell("a")
    assert scripted.messages == [b"ready a", b"B", b"ready a"]
    await scripted.tell("done")
    assert scripted.messages[3:] == []
    await scripted.end_write()
    await scripted.end_write()
    await task


async def test_writes_that_end_at_once() -> None:
    scripted = Scripted()
    scripted.at_once = True
    task = await started(scripted)
    await scripted.tell("a", "b")
    await scripted.tell("c", "done")
    await task
    assert scripted.messages == [b"A", b"B", b"C", b"DONE"]


async def test_news_missed_during_a_write_are_fetched_though_the_next_write_ends_at_once() -> None:
    scripted = Scripted()
    await started(scripted)
    await scripted.tell("a", "b")
    await scripted.tell("c")
    scripted.at_once = True
    await scripted.end_write()
    assert scripted.messages == [b"A", b"B", b"C"]


@pytest.mark.parametrize("way", ["work", "write", "write that is waited for", "last write"])
async def test_what_goes_wrong_ends_it(way: str) -> None:
    scripted = Scripted()
    task = await started(scripted)
    if way == "work":
        await scripted.tell("fail")
    elif way == "last write":
        await scripted.tell("done")
        await scripted.end_write(ValueError("no"))
    else:
        await scripted.tell("a")
        if way == "write that is waited for":
            await scripted.tell("b")
        await scripted.end_write(ValueError("no"))
        if way == "write":
            await scripted.tell("b")
    with pytest.raises(ValueError, match="no"):
        await task
    await scripted.tell("c")
    assert len(scripted.messages) <= 1
    assert scripted.left


async def test_a_cancelled_stream_writes_nothing_more() -> None:
    scripted = Scripted()
    task = await started(scripted)
    await scripted.tell("a", "b")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await scripted.end_write()
    assert scripted.messages == [b"A"]
    assert scripted.left


async def test_many_streams_at_once_each_get_their_own_text() -> None:
    go = asyncio.Event()

    async def talk(stream: FakeStream) -> None:
        stream.admit()
        stream.tokens(stream.request.prompt_token_ids[:1])
        await go.wait()
        for token_id in stream.request.prompt_token_ids[1:]:
            stream.tokens([token_id])
            await asyncio.sleep(0)
        stream.tokens(b"!", finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(talk), max_concurrent_requests=64) as door:
        texts = [f"{number} bottles of beer" for number in range(40)]
        calls = [door.generation.GenerateStream(prompt(text=text)) for text in texts]
        begun = [await call.read() for call in calls]
        go.set()
        streams = await asyncio.gather(*(read(call) for call in calls))
        assert all(event.WhichOneof("event") == "started" for event in begun)
        assert [stream.text() for stream in streams] == [f"{text}!" for text in texts]
        assert {stream.events[-1].WhichOneof("event") for stream in streams} == {"completed"}
        assert {await call.code() for call in calls} == {grpc.StatusCode.OK}


async def test_broken_characters_and_several_tokens_at_once_among_plain_ones() -> None:
    """Every way a token can go, changing from one to the other in the middle of a stream."""
    text = "a🙂b\u00e9\u00e9c" * 3
    raw = text.encode()

    async def talk(stream: FakeStream) -> None:
        stream.admit()
        at = 0
        while at < len(raw):
            size = 2 if at % 5 == 3 else 1
            stream.tokens(raw[at : at + size])
            at += size
            for _ in range(at % 3):
                await asyncio.sleep(0)
        stream.tokens(b"!", finish=FinishReason.MAX_TOKENS)

    async with open_door(FakeEngine(talk)) as door:
        stream = await read(door.generation.GenerateStream(prompt(text="x")))
        deltas = [event.delta for event in stream.events if event.WhichOneof("event") == "delta"]
        assert stream.text() == f"{text}!"
        assert sum(delta.token_count for delta in deltas) == len(raw) + 1
        assert stream.events[-1].completed.usage.completion_tokens == len(raw) + 1
