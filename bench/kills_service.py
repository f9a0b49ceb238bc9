"""`tokenwire`, but for a service that gives up after a few restarts in a row: `bench.kills` has many."""

from __future__ import annotations

from functools import partial

from tokenwire_service import cli
from tokenwire_service.engine import process_client

if __name__ == "__main__":
    process_client.RestartPolicy = partial(process_client.RestartPolicy, healthy_s=0.0)  # type: ignore[misc,assignment]
    cli.main()
