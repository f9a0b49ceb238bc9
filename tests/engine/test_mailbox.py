"""Where events wait for their reader, one that waits or one that is told."""

import asyncio

from tokenwire_service.core.events import Admitted, EngineEvent, FailureReason, TokensGenerated
from tokenwire_service.engine.mailbox import Mailbox


def tokens(index: int = 0) -> TokensGenerated:
    return TokensGenerated("r", index, (1,))


def mailbox(closed: list[str]) -> Mailbox:
    box = Mailbox("r")
    box.bind(finish=lambda index: closed.append(f"finish {index}"), close=lambda: closed.append("close"))
    return box


def test_a_reader_is_told_once_until_it_takes() -> None:
    box, told = mailbox([]), []
    box.put(Admitted("r", 0, 0.0))
    box.notify(lambda: told.append(1))
    assert told == [1]
    box.put(tokens())
    assert told == [1]
    assert [type(event) for event in box.take_now()] == [Admitted, TokensGenerated]
    assert box.take_now() == []
    box.put(tokens())
    box.put(tokens())
    assert told == [1, 1]
    box.notify(None)
    assert len(box.take_now()) == 2
    box.put(tokens())
    assert told == [1, 1]


def test_a_reader_is_told_of_a_failure_and_of_nothing_after_it() -> None:
    box, told = mailbox([]), []
    box.notify(lambda: told.append(1))
    box.fail(FailureReason.ENGINE_DOWN, "down")
    box.put(tokens())
    assert told == [1]
    assert len(box.take_now()) == 1
    assert box.ended


def test_what_comes_of_a_finished_candidate_is_dropped() -> None:
    closed: list[str] = []
    box = mailbox(closed)
    box.finish_candidate(1)
    box.put(tokens(1))
    box.put(tokens(0))
    box.close()
    box.close()
    assert closed == ["finish 1", "close"]


async def test_a_reader_that_waits_is_woken() -> None:
    box = mailbox([])
    waiting = asyncio.ensure_future(box.take())
    await asyncio.sleep(0)
    box.put(tokens())
    taken: list[EngineEvent] = list(await waiting)
    assert taken == [tokens()]
    waiting = asyncio.ensure_future(box.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    box.put(tokens())
    assert len(await box.take()) == 1
    waiting = asyncio.ensure_future(box.take())
    await asyncio.sleep(0)
    box.close()
    assert await waiting == []
