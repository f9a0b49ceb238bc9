"""Two engines behind one door, as `tokenwire serve --replicas 2` runs them; what a death looks like from outside."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.service_process import NOT_SERVING, SERVING, ServiceProcess, eventually, scraped, serving_service
from tokenwire.v1 import engine_pb2, engine_pb2_grpc


@pytest.fixture(scope="module")
def replicas(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Each runs two sequences at once; more wait. Every test leaves both alive."""
    arguments = ["--replicas", "2", "--max-batch-size", "2", "--max-batch-total-tokens", "8192"]
    with serving_service(tmp_path_factory.mktemp("replicas"), tiny_checkpoint, arguments) as service:
        yield service


class Reader(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, stream: Any) -> None:
        super().__init__(daemon=True)
        self.started, self.error, self.num_tokens = threading.Event(), None, 0
        self._stream = stream
        self.start()

    def run(self) -> None:
        try:
            for event in self._stream:
                self.started.set()
                self.num_tokens += event.delta.token_count
        except grpc.RpcError as error:
            self.error: Any = error


def note(health: Iterator[int], changes: list[int]) -> None:
    """Until the service ends."""
    with contextlib.suppress(grpc.RpcError):
        changes.extend(health)


def load_of(service: ServiceProcess) -> engine_pb2.Load:
    return engine_pb2_grpc.EngineServiceStub(service.channel).GetLoad(engine_pb2.GetLoadRequest()).load


def reason_and_retry(error: Any) -> tuple[str, float]:
    """From the status's details."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return info.reason, retry.retry_delay.ToTimedelta().total_seconds()


def test_they_add_up_and_know_their_prefixes(replicas: ServiceProcess) -> None:
    stub = engine_pb2_grpc.EngineServiceStub(replicas.channel)
    told = stub.GetServerInfo(engine_pb2.GetServerInfoRequest())
    assert (told.kv_cache_tokens, told.max_batch_size, told.num_shards) == (2 * 8192, 4, 1)
    assert len(replicas.engine_pids()) == 2
    texts = [f"{number} " * 60 for number in range(6)]
    for _ in range(2):
        events = [list(replicas.stream(2, text)) for text in texts]
    for story in events:
        assert story[0].started.cached_prompt_tokens > 64
    readers = [Reader(replicas.stream(1500, f"hello {number}")) for number in range(4)]
    eventually(lambda: load_of(replicas).running == 4)
    load = load_of(replicas)
    assert (load.kv_blocks_total, load.requests_in_flight) == (2 * 256, 4)
    page = scraped(replicas)
    assert page["tokenwire_sequences_running"] == 4
    for replica in "01":
        assert page[f'tokenwire_replica_ready{{replica="{replica}"}}'] == 1
        assert page[f'tokenwire_replica_sequences_running{{replica="{replica}"}}'] == 2
    for reader in readers:
        reader.join(60)
        assert (reader.error, reader.num_tokens) == (None, 1500)


def test_one_that_dies_under_load_takes_only_what_it_began(replicas: ServiceProcess) -> None:
    health = replicas.health()
    assert next(health) == SERVING
    changes: list[int] = []
    threading.Thread(target=note, args=(health, changes), daemon=True).start()
    begun = [Reader(replicas.stream(4000, f"hello {number}")) for number in range(4)]
    for reader in begun:
        assert reader.started.wait(30)
    waiting = [Reader(replicas.stream(20, f"bye {number}")) for number in range(8)]
    eventually(lambda: load_of(replicas).waiting == 8)
    os.kill(replicas.engine_pids()[0], signal.SIGKILL)
    for reader in (*begun, *waiting):
        reader.join(60)
    lost = [reader for reader in begun if reader.error is not None]
    assert len(lost) == 2
    for reader in lost:
        assert reader.error.code() is grpc.StatusCode.UNAVAILABLE
        reason, retry_s = reason_and_retry(reader.error)
        assert reason == "ENGINE_DOWN"
        assert retry_s > 0
    assert [reader.num_tokens for reader in begun if reader.error is None] == [4000] * 2
    assert [(reader.error, reader.num_tokens) for reader in waiting] == [(None, 20)] * 8
    eventually(lambda: load_of(replicas).kv_blocks_total == 2 * 256)
    assert changes == []


def test_without_any_left_it_is_not_serving_until_one_is_back(replicas: ServiceProcess) -> None:
    health = replicas.health()
    assert next(health) == SERVING
    begun = [Reader(replicas.stream(8000, f"hello {number}")) for number in range(4)]
    for reader in begun:
        assert reader.started.wait(30)
    waiting = Reader(replicas.stream(5))
    eventually(lambda: load_of(replicas).waiting == 1)
    for pid in replicas.engine_pids():
        os.kill(pid, signal.SIGKILL)
    assert next(health) == NOT_SERVING
    with pytest.raises(grpc.RpcError) as refused:
        list(replicas.stream(1))
    assert reason_and_retry(refused.value)[0] == "ENGINE_DOWN"
    assert next(health) == SERVING
    waiting.join(60)
    assert (waiting.error, waiting.num_tokens) == (None, 5)
    for reader in begun:
        reader.join(60)
        assert reason_and_retry(reader.error)[0] == "ENGINE_DOWN"
    eventually(lambda: len(replicas.engine_pids()) == 2)
