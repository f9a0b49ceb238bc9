"""Which rank a process is, by torchrun's variables."""

import pytest

from tokenwire_service.errors import ConfigError
from tokenwire_service.parallel.identity import RankIdentity, identity_from

ENVIRON = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "run",
}


def test_torchruns_variables_name_a_rank() -> None:
    assert identity_from(ENVIRON) == RankIdentity(3, 4, 1, 2, "10.0.0.1", 29501, "run")
    assert identity_from({}) is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("WORLD_SIZE", None, "WORLD_SIZE is ''"),
        ("WORLD_SIZE", "four", "WORLD_SIZE is 'four'"),
        ("WORLD_SIZE", "2", "RANK=3, WORLD_SIZE=2"),
        ("RANK", "-1", "RANK=-1"),
        ("LOCAL_RANK", "2", "LOCAL_RANK=2"),
        ("LOCAL_WORLD_SIZE", "8", "LOCAL_WORLD_SIZE=8"),
        ("MASTER_ADDR", None, "MASTER_ADDR is not"),
        ("MASTER_PORT", "65535", "MASTER_PORT 65535"),
    ],
)
def test_variables_that_make_no_sense_are_named(name: str, value: str | None, told: str) -> None:
    environ = {**ENVIRON, name: value} if value is not None else {n: v for n, v in ENVIRON.items() if n != name}
    with pytest.raises(ConfigError, match=told):
        identity_from(environ)
