"""One model over two machines under torchrun."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support.rank_processes import with_mark
from tests.support.service_process import SERVING, ServiceProcess, eventually
from tests.support.two_nodes import TwoNodeService, two_nodes


def text_of(service: ServiceProcess, text: str) -> str:
    return "".join(event.delta.text for event in service.stream(30, text))


def test_two_machines_serve_one_model_and_come_back_when_the_second_ones_rank_dies(
    sharded: ServiceProcess, tiny_checkpoint: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with two_nodes() as (first, second, apart):
        record_property("network_namespaces", apart)
        if not apart:
            print("network namespaces are not permitted here: both nodes are this machine", file=sys.__stderr__)
        nodes = TwoNodeService((first, second), tiny_checkpoint, tmp_path)
        try:
            service = nodes.service
            service.wait_for_health(SERVING)
            spoken = text_of(service, "hello")
            streams = [service.stream(8000, f"stream {index}") for index in range(3)]
            for stream in streams:
                next(stream)
            os.kill(nodes.rank_pid(1), signal.SIGKILL)
            for stream in streams:
                with pytest.raises(grpc.RpcError) as ended:
                    list(stream)
                assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            service.wait_for_health(SERVING)
            assert text_of(service, "hello") == spoken
            log = nodes.logs[0].read_text()
            assert re.search(r"rank 1 (closed|lost) its connection.*; ending all 2 ranks", log), log
            assert "the rank's process was ended by signal 9; starting it again" in nodes.logs[1].read_text()
            nodes.stop()
            eventually(lambda: not with_mark(nodes.mark))
        finally:
            nodes.close()
    assert text_of(sharded, "hello") == spoken
