"""Rank 0's door: waits until every other rank has come, each with two connections, control and plans."""

from __future__ import annotations

import hmac
import logging
import socket
import time
from collections.abc import Callable, Sequence

from tokenwire.engine.v1alpha import ranks_pb2 as ranks_pb
from tokenwire_service.engine.rank_child import RankChild, told
from tokenwire_service.engine.rank_hello import find_mismatch
from tokenwire_service.engine.rank_link import LinkError, RankLink
from tokenwire_service.errors import ConfigError, StartupError
from tokenwire_service.parallel.identity import RankIdentity

Link = RankLink[ranks_pb.RankMessage]
_HELLO_S = 5.0
"""How long who connects may take to say who it is."""
_TELL_S = 10.0
"""How often the log says who is being waited for."""


class Meeting:
    """Listens from construction on. Raises StartupError when it cannot."""

    def __init__(self, identity: RankIdentity, logger: logging.Logger) -> None:
        self._identity = identity
        self._logger = logger
        self._listener = _listen(identity)
        self.port = int(self._listener.getsockname()[1])
        self.links: dict[int, Link] = {}
        self.plans: dict[int, socket.socket] = {}

    def wait(
        self, ours: ranks_pb.RankHello, children: Sequence[RankChild], on_link: Callable[[int, Link], None]
    ) -> None:
        """Return once all have come. `on_link` is called with each that came, which has to follow it then.

        Raises ConfigError for a rank that does not fit to `ours`, StartupError for a child that ended before it came.
        """
        with self._listener:
            self._listener.settimeout(0.2)
            next_told = time.monotonic() + _TELL_S
            while missing := self._missing():
                self._check_alive(children)
                if time.monotonic() > next_told:
                    self._logger.info("waiting for ranks %s of %d", missing, self._identity.size)
                    next_told = time.monotonic() + _TELL_S
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    continue
                self._take(connection, ours, on_link)

    def close(self) -> None:
        """Nobody else is let in."""
        self._listener.close()

    def forget(self, rank: int, link: Link) -> None:
        """One that came went away again, by `link`."""
        if self.links.get(rank) is link:
            del self.links[rank]
            self.plans.pop(rank, None)

    def _missing(self) -> list[int]:
        others = range(1, self._identity.size)
        return [rank for rank in others if rank not in self.links or rank not in self.plans]

    def _check_alive(self, children: Sequence[RankChild]) -> None:
        for child in children:
            if (status := child.status) is not None:
                raise StartupError(f"rank {child.rank} {told(status)} while starting; its log says why")

    def _take(self, connection: socket.socket, ours: ranks_pb.RankHello, on_link: Callable[[int, Link], None]) -> None:
        link = RankLink(connection, ranks_pb.RankMessage)
        try:
            message = link.receive(_HELLO_S)
        except LinkError as error:
            self._logger.warning("a connection to the ranks' port %s: closed", error)
            link.close()
            return
        hello = message.hello
        if not hmac.compare_digest(hello.token.encode(), ours.token.encode()):
            self._refuse(link, "it does not know the group's token")
        elif not 0 < hello.rank < self._identity.size:
            self._refuse(link, f"there is no rank {hello.rank} of {self._identity.size}; see --num-shard")
        elif mismatch := find_mismatch(hello, ours):
            self._refuse(link, mismatch)
            raise ConfigError(mismatch)
        elif hello.plans:
            self.plans[hello.rank] = link.detach()
        else:
            self.links[hello.rank] = link
            on_link(hello.rank, link)

    def _refuse(self, link: Link, why: str) -> None:
        self._logger.error("a rank is refused: %s", why)
        link.send(ranks_pb.RankZeroMessage(refused=why))
        link.close()


def _listen(identity: RankIdentity) -> socket.socket:
    try:
        found = socket.getaddrinfo(identity.address, identity.port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server((str(address[0]), identity.port), family=family, backlog=128)
    except OSError as error:
        raise StartupError(
            f"rank 0 cannot listen at {identity.address}:{identity.port} for the others: {error.strerror or error}; "
            "MASTER_ADDR must be an address of rank 0's machine, and the port after MASTER_PORT be free"
        ) from error
