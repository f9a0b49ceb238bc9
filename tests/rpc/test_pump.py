"""Streams written without tasks: coroutines driven by hand, and bursts of many streams' writes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.support.fake_engine import FakeEngine, FakeStream
from tests.support.rpc import open_door, prompt, read
from tokenwire_service.core.events import FinishReason
from tokenwire_service.rpc.driven import Driven
from tokenwire_service.rpc.pump import Bursts, Pump


async def ended(work: Callable[[], Awaitable[None]]) -> BaseException | None:
    """How driving a coroutine ended."""
    end: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    Driven(work(), end.set_result).start()  # type: ignore[arg-type]
    return await end


async def test_a_coroutine_that_never_waits_ends_at_once() -> None:
    ends: list[BaseException | None] = []

    async def work() -> None:
        pass

    Driven(work(), ends.append).start()
    assert ends == [None]


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

    assert await ended(work) is None
    assert seen == [7, 1, 9]


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

    assert isinstance(await ended(passes_on), ValueError)
    assert await ended(catches) is None


async def test_a_cancelled_wait_is_an_end() -> None:
    future = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    asyncio.get_running_loop().call_soon(future.cancel)
    assert isinstance(await ended(work), asyncio.CancelledError)


async def test_all_work_comes_before_all_writes() -> None:
    order: list[str] = []

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def work(self) -> None:
            order.append(f"work {self.name}")

        def write(self) -> None:
            order.append(f"write {self.name}")

    bursts = Bursts()
    pumps: list[Any] = [Noted("a"), Noted("b")]
    for pump in pumps:
        bursts.add(pump)
    assert order == []
    await asyncio.sleep(0)
    assert order == ["work a", "work b", "write a", "write b"]
    bursts.add(pumps[1])
    await asyncio.sleep(0)
    assert order[4:] == ["work b", "write b"]


class Scripted:
    """A session and a call in one: news by hand, writes that end by hand."""

    def __init__(self) -> None:
        self.done = False
        self.news: list[str] = []
        self.callback: Callable[[], None] | None = None
        self.writes: list[tuple[str, Callable[[BaseException | None], None]]] = []

    def notify(self, callback: Callable[[], None] | None) -> None:
        self.callback = callback

    def take_now(self) -> list[str]:
        news, self.news = self.news, []
        if "fail" in news:
            raise ValueError("no")
        self.done = "done" in news
        return news

    def write_then(self, message: str, then: Callable[[BaseException | None], None]) -> None:
        self.writes.append((message, then))

    async def tell(self, *news: str) -> None:
        self.news += news
        if len(self.news) == len(news) and self.callback is not None:
            self.callback()
        for _ in range(3):
            await asyncio.sleep(0)

    async def written(self, error: BaseException | None = None) -> None:
        self.writes[-1][1](error)
        for _ in range(3):
            await asyncio.sleep(0)

    @property
    def messages(self) -> list[str]:
        return [message for message, _ in self.writes]


async def started(scripted: Any) -> asyncio.Task[None]:
    task = asyncio.ensure_future(Pump(scripted, scripted, str.upper, Bursts()).run())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    return task


async def test_one_write_at_a_time_and_news_gather_meanwhile() -> None:
    scripted = Scripted()
    task = await started(scripted)
    await scripted.tell("a", "b")
    assert scripted.messages == ["A"]
    await scripted.tell("c")
    await scripted.written()
    assert scripted.messages == ["A", "B"]
    assert scripted.news == ["c"]
    await scripted.tell("done")
    await scripted.written()
    assert scripted.messages == ["A", "B", "C"]
    await scripted.written()
    assert not task.done()
    await scripted.written()
    await task
    assert scripted.messages == ["A", "B", "C", "DONE"]
    assert scripted.callback is None


@pytest.mark.parametrize("way", ["work", "write"])
async def test_what_goes_wrong_ends_it(way: str) -> None:
    scripted = Scripted()
    task = await started(scripted)
    await scripted.tell("fail" if way == "work" else "a")
    if way == "write":
        await scripted.written(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await task
    await scripted.tell("b")
    assert "B" not in scripted.messages


async def test_a_cancelled_stream_writes_nothing_more() -> None:
    scripted = Scripted()
    task = await started(scripted)
    await scripted.tell("a", "b")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await scripted.written()
    assert scripted.messages == ["A"]


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
