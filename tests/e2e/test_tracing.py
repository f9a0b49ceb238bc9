"""One trace from the caller's traceparent through gateway and service to the engine's phases."""

import time
from pathlib import Path

from tests.support.otlp import attributes, running_collector
from tests.support.stack import running_stack

CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_one_trace_from_gateway_to_engine(tmp_path: Path) -> None:
    with running_collector() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.endpoint}",
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with running_stack(tmp_path, environment=environment) as stack:
            body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "temperature": 0}
            headers = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"}
            assert stack.http("/v1/chat/completions", body, headers=headers).status == 200
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and len(_traced(collector.spans)) < 5:
                time.sleep(0.1)
        spans = _traced(collector.spans)
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_span_id == bytes.fromhex(CALLER_SPAN)]
    assert len(roots) == 1, [span.name for span in spans]
    assert all(span.parent_span_id in by_id or span in roots for span in spans), "a span without its parent"
    for phase in ("queue", "prefill", "decode"):
        assert any(phase in span.name for span in spans), f"no span of the engine's {phase}"
    described = [attributes(span) for span in spans]
    served = [found for found in described if found.get("inference.backend") == "tokenwire"]
    assert served
    assert all("model_id" in found for found in served)
    assert any(found.get("gen_ai.usage.output_tokens") == 4 for found in described)
    assert not any("hello" in str(value) for found in described for value in found.values()), "content in a span"


def _traced(spans: list) -> list:  # type: ignore[type-arg]
    return [span for span in spans if span.trace_id == bytes.fromhex(CALLER_TRACE)]
