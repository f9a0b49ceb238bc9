"""When an engine is taken for hung."""

from __future__ import annotations

from tokenwire_service.engine.client import EngineInfo

STEP_TIMEOUT_S = 8.0
"""A hang is known within 10 s: to this come the second between signs of life, and the time between two looks."""
UNCOUNTED_STEP_TIMEOUT_S = 60.0
"""On a CPU without native kernels, where a step may take as long and does not say that it goes on."""
LONGEST_LOOK_S = 1.0


def step_timeout_s(asked: float, info: EngineInfo) -> float:
    """How long an engine with work may go without a step, or a piece of one; 0 asks for what fits the engine."""
    counts = info.device != "cpu" or info.attention_backend == "native"
    return asked or (STEP_TIMEOUT_S if counts else UNCOUNTED_STEP_TIMEOUT_S)


class Vigil:
    """Adds up for how long an engine was silent, or had work and got nowhere: made no step, and did no piece of one
    where those are counted.

    Looked at several times a second. Between two looks at most `LONGEST_LOOK_S` counts: where this process itself
    stood still, as in a container that was paused, the engine had no chance to be heard.
    """

    def __init__(self, silence_timeout_s: float, now: float) -> None:
        """Times are monotonic seconds."""
        self.step_timeout_s = UNCOUNTED_STEP_TIMEOUT_S
        self._silence_timeout_s = silence_timeout_s
        self._looked_at = now
        self._speaks = False
        self._work_done = 0
        self._silent_s = 0.0
        self._stepless_s = 0.0

    def alive(self, work_done: int) -> None:
        """The process said that it lives, and how much it has computed: it will do so each second from now on."""
        self._speaks = True
        if work_done != self._work_done:
            self._work_done = work_done
            self._stepless_s = 0.0

    def heard(self) -> None:
        """Any message came."""
        self._silent_s = 0.0

    def stepped(self) -> None:
        """A step was made."""
        self._stepless_s = 0.0

    def look(self, now: float, *, working: bool) -> str | None:
        """What is wrong, for the operator; None while nothing is. `working`: it is loaded, and has requests."""
        elapsed_s = min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now
        self._silent_s += elapsed_s
        self._stepless_s = self._stepless_s + elapsed_s if working else 0.0
        if self._speaks and self._silent_s > self._silence_timeout_s:
            return f"the engine's process gave no sign of life for {self._silent_s:.1f} s"
        if self._stepless_s > self.step_timeout_s:
            return (
                f"the engine has work but made no progress for {self._stepless_s:.0f} s (if steps take that long "
                "here, lower --max-batch-prefill-tokens or raise --step-timeout-s)"
            )
        return None
