"""Stop strings found in a text that arrives in pieces, wherever the pieces are cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Node:
    """A state of the automaton: the longest end of the text so far that begins some stop string."""

    depth: int
    next: dict[str, int]
    fallback: int = 0
    match: int = -1
    """Index of the longest stop string that ends here; -1 for none."""


class StopStrings:
    """Aho–Corasick over characters: each is looked at once, and only what may still become a match is held back.

    The match that ends first wins, of several ending together the longest; so the result does not depend on how the
    text was cut.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        """`include_stop` leaves the matched string in the text. Empty strings must have been refused before."""
        self._stop = tuple(stop)
        self._include = include_stop
        self._nodes = _build(self._stop)
        self._firsts = frozenset(text[0] for text in self._stop)
        self._state = 0
        self._held = ""
        self._matched = False

    @property
    def held(self) -> int:
        """Characters held back."""
        return len(self._held)

    def feed(self, delta: str, *, armed: bool = True) -> tuple[str, str | None]:
        """(text that may be shown, the stop string matched or None). After a match everything is dropped.

        While not `armed`, matches are passed over; one that begins now and ends when armed again counts.
        """
        if self._matched or not delta:
            return "", None
        if self._state == 0 and self._firsts.isdisjoint(delta):
            return delta, None
        state, nodes = self._state, self._nodes
        for position, char in enumerate(delta):
            while (following := nodes[state].next.get(char)) is None and state:
                state = nodes[state].fallback
            state = following or 0
            if nodes[state].match >= 0:
                if armed:
                    return self._finish(self._held + delta[: position + 1], nodes[state].match)
                # Passed over, so a string that nothing can follow is no longer on its way to a match.
                while state and not nodes[state].next:
                    state = nodes[state].fallback
        self._state = state
        text, keep = self._held + delta, nodes[state].depth
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown, None

    def _finish(self, text: str, match: int) -> tuple[str, str]:
        self._matched, self._held = True, ""
        stop = self._stop[match]
        return (text if self._include else text[: len(text) - len(stop)]), stop

    def flush(self) -> str:
        """The end of the text: what was held back after all."""
        held, self._held, self._state = self._held, "", 0
        return held


def _build(stop: Sequence[str]) -> list[_Node]:
    nodes = [_Node(0, {})]
    for index, text in enumerate(stop):
        state = 0
        for char in text:
            if char not in nodes[state].next:
                nodes.append(_Node(nodes[state].depth + 1, {}))
                nodes[state].next[char] = len(nodes) - 1
            state = nodes[state].next[char]
        if nodes[state].match < 0:
            nodes[state].match = index
    _link(nodes)
    return nodes


def _link(nodes: list[_Node]) -> None:
    """Breadth first: each node falls back to the longest proper suffix that is a node, and inherits its match."""
    queue = deque(nodes[0].next.values())
    while queue:
        node = nodes[queue.popleft()]
        for char, child_index in node.next.items():
            queue.append(child_index)
            state = node.fallback
            while char not in nodes[state].next and state:
                state = nodes[state].fallback
            child = nodes[child_index]
            child.fallback = nodes[state].next.get(char, 0)
            if child.match < 0:
                child.match = nodes[child.fallback].match
