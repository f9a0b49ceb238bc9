"""Which rank of how many a process is. No torch: the CLI and the supervisor of a rank read it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenwire_service.errors import ConfigError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """One rank of a group, and where it meets rank 0."""

    rank: int
    size: int
    local_rank: int
    """Among the ranks of its machine; also the number of its GPU."""
    num_local: int
    """Ranks on its machine."""
    address: str = "127.0.0.1"
    """Host at which rank 0 listens for the others."""
    port: int = 0
    """Port at which it does; 0 is any free one."""
    token: str = ""
    """What every rank of the group knows."""

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.num_local <= self.size):
            raise ValueError(f"no rank of a group: {self}")


def identity_from(environ: Mapping[str, str]) -> RankIdentity | None:
    """What torchrun (or whoever sets the same variables) says this process is; None where nobody does. Rank 0 listens
    at the port after MASTER_PORT, which the launcher itself may use. Raises ConfigError for variables that make no
    sense."""
    if "RANK" not in environ:
        return None
    numbers = {name: _number(environ, name) for name in _VARIABLES}
    address = environ.get("MASTER_ADDR", "")
    if not address:
        raise ConfigError("RANK is set, but MASTER_ADDR is not; start every rank with torchrun, or unset RANK")
    if not 0 < numbers["MASTER_PORT"] < 65535:
        raise ConfigError(f"MASTER_PORT {numbers['MASTER_PORT']}: use a port in 1..65534; ranks meet at the one after")
    try:
        return RankIdentity(
            rank=numbers["RANK"],
            size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            num_local=numbers["LOCAL_WORLD_SIZE"],
            address=address,
            port=numbers["MASTER_PORT"] + 1,
            token=environ.get("TORCHELASTIC_RUN_ID", ""),
        )
    except ValueError:
        told = ", ".join(f"{name}={numbers[name]}" for name in _VARIABLES[:4])
        raise ConfigError(f"{told} name no rank of a group; start every rank with torchrun, or unset RANK") from None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"RANK is set, but {name} is '{text}'; start every rank with torchrun, or unset RANK"
        ) from None
