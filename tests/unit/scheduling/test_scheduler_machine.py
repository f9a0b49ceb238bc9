"""Every operation in every order, pipelined up to three deep, with and without drafts, with `check_integrity()` after
each."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.scheduler_world import World
from tests.support.scheduling import make_limits, make_request


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(8, 24),
        num_slots=st.integers(1, 5),
        budget=st.integers(1, 20),
        prefix_caching=st.booleans(),
        num_draft_tokens=st.integers(0, 5),
        draft_max_batch=st.integers(1, 5),
        num_layers=st.sampled_from([0, 2, 7]),
    )
    def start(
        self,
        num_blocks: int,
        num_slots: int,
        budget: int,
        prefix_caching: bool,
        num_draft_tokens: int,
        draft_max_batch: int,
        num_layers: int,
    ) -> None:
        limits = make_limits(
            num_blocks,
            2,
            num_slots,
            budget,
            24,
            prefix_caching,
            num_draft_tokens=num_draft_tokens,
            draft_max_batch=draft_max_batch,
            max_decode_slowdown=1.5,
            num_layers=num_layers,
        )
        self.world = World(limits, depth=1_000)

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple),
        max_tokens=st.integers(1, 10),
        num_candidates=st.integers(1, 3),
        prompt_logprobs=st.booleans(),
        priority=st.integers(-1, 1),
        delays=st.tuples(*[st.none() | st.floats(0.0, 10.0)] * 3),
        salt=st.sampled_from(["", "s"]),
        bypass=st.booleans(),
        stops=st.booleans(),
        top_k=st.integers(0, 3),
        min_tokens=st.integers(0, 2),
    )
    def add(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        num_candidates: int,
        prompt_logprobs: bool,
        priority: int,
        delays: tuple[float | None, float | None, float | None],
        salt: str,
        bypass: bool,
        stops: bool,
        top_k: int,
        min_tokens: int,
    ) -> None:
        now = self.world.now
        time_limit_s, deadline, queue_deadline = delays
        self.world.add(
            make_request(
                f"r{len(self.world.requests)}",
                prompt,
                max_tokens,
                stop_token_ids=frozenset(range(1, 50, 5)) if stops else frozenset(),
                time_limit_s=time_limit_s,
                num_candidates=num_candidates,
                prompt_logprobs=prompt_logprobs,
                priority=priority,
                arrival_time=now,
                deadline=None if deadline is None else now + deadline,
                queue_deadline=None if queue_deadline is None else now + queue_deadline,
                salt=salt,
                bypass=bypass,
                top_k=top_k,
                min_tokens=min_tokens,
            )
        )

    @precondition(lambda self: len(self.world.in_flight) < 3)
    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]))
    def schedule(self, seconds: float) -> None:
        self.world.now += seconds
        output = self.world.scheduler.schedule(self.world.now)
        result = self.world.runner.execute(output)
        if output.scheduled:
            self.world.in_flight.append((output, result))
        self.world.settle()

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def update(self) -> None:
        self.world.update()

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.sampled_from(sorted(self.world.requests))))

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(sorted(self.world.requests))))

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data(), index=st.integers(0, 2))
    def finish_candidate(self, data: st.DataObject, index: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.requests)))
        if index < self.world.requests[name].num_candidates:
            self.world.finish_candidate(name, index)

    @rule(seconds=st.floats(0.0, 3.0))
    def drop_expired(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.scheduler.drop_expired(self.world.now)
        self.world.settle()

    @rule()
    def flush(self) -> None:
        self.world.scheduler.flush_cache()
        self.world.settle()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.depth = 1
        while self.world.in_flight:
            self.world.update()
        self.world.run()
        self.world.assert_transcripts()
        self.world.assert_idle()


SchedulerMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
TestSchedulerMachine = SchedulerMachine.TestCase
