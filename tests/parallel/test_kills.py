"""A few of the kills that `bench.kills` does by the hundred."""

from pathlib import Path

import pytest

from bench.kills import run_kills, summarise


@pytest.mark.timeout(600)
def test_every_kill_of_a_random_rank_ends_as_it_should(tiny_checkpoint: Path) -> None:
    kills = run_kills(str(tiny_checkpoint), kills=10, ranks=2, streams=4)
    assert {kill.rank for kill in kills} == {0, 1}
    for kill in kills:
        assert kill.unavailable == kill.streams == 4, kill
        assert kill.works, kill
        assert (kill.processes_left, kill.files_left) == (0, 0), kill
    assert summarise(kills)["kills"] == 10
