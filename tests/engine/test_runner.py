"""The runner's parts: the flat batch against a token-by-token one, sizes, free memory, counts, non-finite rows."""

import collections
import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.local_engine import TINY_LIMITS
from tokenwire_service.config import EngineConfig
from tokenwire_service.core.cores import usable_cores
from tokenwire_service.core.params import LogprobsParams, SamplingParams
from tokenwire_service.errors import ConfigError
from tokenwire_service.kernels.backend import reference_backend
from tokenwire_service.layers.rotary import RopeScaling, RopeSpec, Rotary, RotaryTable
from tokenwire_service.models.families import read_spec
from tokenwire_service.models.spec import ModelSpec
from tokenwire_service.runner.device_slots import DeviceSlots, SlotWrites
from tokenwire_service.runner.forward_batch import Draws, ForwardBatch, build_forward_batch
from tokenwire_service.runner.kv_cache import KVCache, kv_block_bytes
from tokenwire_service.runner.logprobs import TokenScores
from tokenwire_service.runner.machine import choose_device, free_memory_bytes
from tokenwire_service.runner.sampler import Sampler
from tokenwire_service.runner.sizing import EngineSizes, check_flags, choose_sizes
from tokenwire_service.runner.slots import SlotState
from tokenwire_service.runner.step_rows import StepRows
from tokenwire_service.runner.token_counts import TokenCounts
from tokenwire_service.runner.transfer import upload_all
from tokenwire_service.runner.vocabulary import WholeVocabulary
from tokenwire_service.runner.worker import Worker
from tokenwire_service.scheduling.output import ScheduledSlot, SchedulerOutput, SlotJoin
from tokenwire_service.weights.progress import SilentProgress
from tokenwire_service.weights.resolved import ResolvedModel

CPU = torch.device("cpu")
SIZES = EngineSizes(
    num_blocks=64, block_size=16, max_num_sequences=8, max_batch_tokens=64, max_total_tokens=100, vocab_size=97
)


def join(slot: int, tokens: list[int], blocks: list[int], sampling: SamplingParams | None = None) -> SlotJoin:
    return SlotJoin(
        slot,
        tuple(tokens),
        len(tokens),
        tuple(blocks),
        sampling or SamplingParams(temperature=0.0),
        0,
        (),
        0,
        None,
        None,
    )


def plan(*rows: ScheduledSlot, joins: tuple[SlotJoin, ...] = (), leaves: tuple[int, ...] = ()) -> SchedulerOutput:
    return SchedulerOutput(0, leaves, joins, rows)


class Slots:
    """Both halves of the slots' state."""

    def __init__(self, vocab_size: int = 1000) -> None:
        self.state = SlotState(SIZES, vocab_size)
        self.device = DeviceSlots(self.state.layout, CPU)

    def apply(self, output: SchedulerOutput) -> None:
        writes = self.state.apply(output)
        self.device.write(*(torch.from_numpy(part.astype(np.int32)) for part in writes.arrays()))

    def batch(self, *scheduled: ScheduledSlot) -> tuple[ForwardBatch, Draws]:
        rows = StepRows.of(scheduled)
        self.state.count(rows)
        draws = Draws.of(rows)
        return build_forward_batch(rows, draws, SlotWrites(self.state.layout), self.state, self.device), draws


@pytest.mark.parametrize("seed", range(10))
def test_a_flat_batch_says_the_same_as_its_tokens_one_by_one(seed: int) -> None:
    generator = random.Random(seed)
    slots = Slots()
    free_blocks = generator.sample(range(64), 64)
    contents: dict[int, tuple[list[int], list[int]]] = {}
    for slot in generator.sample(range(8), 5):
        tokens = [generator.randrange(1000) for _ in range(generator.randrange(1, 90))]
        blocks = [free_blocks.pop() for _ in range(-(-len(tokens) // 16))]
        contents[slot] = (tokens, blocks)
    rows = []
    for slot, (tokens, _) in contents.items():
        start = generator.randrange(len(tokens))
        count = generator.randrange(1, len(tokens) - start + 1)
        rows.append(ScheduledSlot(slot, start, count, (), samples=start + count == len(tokens)))
    slots.apply(plan(joins=tuple(join(slot, *content) for slot, content in contents.items())))
    batch, draws = slots.batch(*rows)
    at = 0
    for number, row in enumerate(rows):
        tokens, blocks = contents[row.slot]
        assert batch.attention.query_start_loc[number] == at
        assert batch.attention.seq_lens[number] == row.start + row.num_tokens
        held = -(-(row.start + row.num_tokens) // 16)
        assert batch.attention.block_tables[number, :held].tolist() == blocks[:held]
        for position in range(row.start, row.start + row.num_tokens):
            assert batch.input_ids[at] == tokens[position]
            assert batch.positions[at] == position
            assert batch.attention.slot_mapping[at] == blocks[position // 16] * 16 + position % 16
            at += 1
    assert batch.attention.query_start_loc[-1] == at == len(batch.input_ids)
    assert draws.per_row.tolist() == [int(row.samples) for row in rows]
    last_tokens = (batch.attention.query_start_loc[1:] - 1).tolist()
    assert batch.kept.tokens.tolist() == [last_tokens[number] for number, row in enumerate(rows) if row.samples]
    assert batch.draws.positions.tolist() == [len(contents[slot][0]) for slot in draws.slots.tolist()]
    assert batch.attention.max_query_len == max(row.num_tokens for row in rows)


def test_a_row_with_a_draft_draws_at_each_of_its_tokens() -> None:
    slots = Slots()
    slots.apply(plan(joins=(join(4, [5, 6, 7], [3]), join(2, [8], [9]), join(6, [1, 2], [1]))))
    rows = (
        ScheduledSlot(4, 2, 3, (), samples=True, draft_token_ids=(70, 71)),
        ScheduledSlot(2, 0, 1, (), samples=True),
        ScheduledSlot(6, 0, 1, (), samples=False),
    )
    slots.apply(plan(*rows))
    batch, draws = slots.batch(*rows)
    assert batch.input_ids.tolist() == [7, 70, 71, 8, 1]
    assert draws.per_row.tolist() == [3, 1, 0]
    assert batch.kept.tokens.tolist() == [0, 1, 2, 3]
    assert batch.draws.slots.tolist() == [4, 4, 4, 2]
    assert batch.draws.positions.tolist() == [3, 4, 5, 1]
    assert batch.draws.appended.tolist() == [-1, -1, -1, 2]
    owner = slots.state.sampling[4]
    slots.state.learn_draft(4, owner, 3, (70, 90))
    slots.apply(plan())
    assert slots.device.token_ids[4, :5].tolist() == [5, 6, 7, 70, 90]
    assert (int(slots.device.seq_lens[4]), int(slots.device.positions[4]), int(slots.device.last_token[4])) == (
        5,
        4,
        90,
    )
    assert slots.state.num_tokens[4] == 5
    slots.state.learn_draft(4, owner, 5, (91,))
    slots.apply(plan(leaves=(4,), joins=(join(4, [1], [2]),)))
    assert slots.state.num_tokens[4] == 1
    slots.state.learn_draft(4, owner, 5, (92,))  # of the one that left
    slots.apply(plan())
    assert (slots.state.num_tokens[4], int(slots.device.last_token[4])) == (1, 1)


def test_a_plan_that_disagrees_with_the_slots_is_refused() -> None:
    slots = Slots(vocab_size=10)
    slots.apply(plan(joins=(join(0, [1, 2, 3], [5]),)))
    with pytest.raises(ValueError, match="do not hold"):
        slots.batch(ScheduledSlot(0, 0, 4, (), samples=True))
    with pytest.raises(ValueError, match="do not hold"):
        slots.batch(ScheduledSlot(0, 0, 2, (), samples=True))
    slots.apply(plan(joins=(join(1, [1] * 20, [5]),)))
    with pytest.raises(ValueError, match="no blocks"):
        slots.batch(ScheduledSlot(1, 0, 20, (), samples=True))
    with pytest.raises(ValueError, match="does not follow"):
        slots.apply(plan(ScheduledSlot(0, 3, 2, (), samples=True, draft_token_ids=(1,))))
    with pytest.raises(ValueError, match="room for 7"):
        slots.apply(plan(ScheduledSlot(0, 3, 1, tuple(range(9)), samples=True)))
    for length in (0, 101):
        with pytest.raises(ValueError, match="room for 1 to 100"):
            slots.apply(plan(joins=(join(2, [1] * length, [5]),)))


def test_tokens_outside_the_vocabulary_never_reach_the_embedding() -> None:
    slots = Slots(vocab_size=10)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        slots.apply(plan(joins=(join(0, [1, 10], [5]),)))
    slots.apply(plan(joins=(join(0, [1, 9], [5]),)))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        slots.apply(plan(ScheduledSlot(0, 1, 2, (), samples=True, draft_token_ids=(-1,))))


def test_slots_grow_by_blocks_and_tokens_and_are_used_again() -> None:
    slots = Slots(vocab_size=10)
    slots.apply(plan(joins=(join(3, [1] * 16, [7]),)))
    slots.device.append(torch.tensor([9, 5]), torch.tensor([3, -1], dtype=torch.int32), reference_backend())
    slots.apply(plan(ScheduledSlot(3, 16, 1, (8,), samples=True)))
    assert slots.state.block_tables[3, :2].tolist() == slots.device.block_tables[3, :2].tolist() == [7, 8]
    assert slots.device.token_ids[3, :17].tolist() == [1] * 16 + [9]
    slots.apply(plan(leaves=(3,), joins=(join(3, [4], [2]),)))
    assert (slots.state.num_tokens[3], slots.state.num_blocks[3]) == (1, 1)
    assert (int(slots.device.seq_lens[3]), int(slots.device.last_token[3])) == (1, 4)


def test_the_device_has_the_sampling_parameters_to_the_bit() -> None:
    slots = Slots()
    samplings = {
        0: SamplingParams(temperature=0.3, top_k=10**12, top_p=0.9, min_p=0.1, seed=2**64 - 1),
        5: SamplingParams(temperature=1.7, top_k=3, seed=-(2**40) - 3),
    }
    slots.apply(plan(joins=tuple(join(slot, [1], [slot], sampling) for slot, sampling in samplings.items())))
    columns = slots.device.sample_columns(torch.tensor([5, 0, -1], dtype=torch.int32), torch.tensor([4, 5, 6]))
    assert columns.temperature[:2].tolist() == np.array([1.7, 0.3], np.float32).tolist()
    assert columns.top_p[:2].tolist() == np.array([1.0, 0.9], np.float32).tolist()
    assert columns.min_p[:2].tolist() == np.array([0.0, 0.1], np.float32).tolist()
    assert columns.top_k[:2].tolist() == [3, 1000]
    assert columns.seed[:2].tolist() == [-(2**40) - 3, -1]


def test_parts_of_one_upload_are_aligned_and_keep_their_values() -> None:
    arrays = [np.arange(length, dtype=np.int64) - 3 for length in (5, 0, 1, 8, 3)]
    parts = upload_all(arrays, CPU)
    assert [part.tolist() for part in parts] == [array.tolist() for array in arrays]
    assert len({part.data_ptr() % 16 for part in parts if len(part)}) == 1
    assert {part.dtype for part in parts} == {torch.int32}


@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling("dynamic", 2.0, 50), RopeScaling("llama3", 8.0, 64), RopeScaling("yarn", 4.0, 64)],
    ids=lambda scaling: scaling.kind if scaling else "plain",
)
def test_rotations_looked_up_are_those_computed(scaling: RopeScaling | None) -> None:
    rotary = Rotary(RopeSpec(10000.0, 8, scaling=scaling), CPU)
    table = RotaryTable(rotary, 8300, reference_backend())
    positions = torch.tensor([0, 1, 49, 50, 51, 8191, 8192, 8299, 7])
    # The last bits of a frequency depend on how many are computed at once.
    torch.testing.assert_close(table(positions), rotary(positions), atol=2e-3, rtol=0)


def test_counts_match_a_counter() -> None:
    generator = random.Random(0)
    prompt = [generator.randrange(40) for _ in range(60)]
    generated = [generator.randrange(300) for _ in range(400)]
    for count_prompt in (False, True):
        counts = TokenCounts(np.array(prompt, np.int32), np.array(generated[:5], np.int32), count_prompt=count_prompt)
        for token in generated[5:]:
            counts.add(token)
        expected = collections.Counter(generated)
        everything = expected + collections.Counter(prompt if count_prompt else [])
        assert dict(zip(counts.token_ids.tolist(), counts.total.tolist(), strict=True)) == everything
        assert {
            t: c for t, c in zip(counts.token_ids.tolist(), counts.generated.tolist(), strict=True) if c
        } == expected


def test_rows_that_are_not_finite_are_told_apart() -> None:
    state = SlotState(SIZES, vocab_size=50)
    samplings = [SamplingParams(temperature=0.0), SamplingParams(seed=1), SamplingParams(seed=1, top_p=0.5)]
    state.apply(plan(joins=tuple(join(slot, [1, 2], [slot], sampling) for slot, sampling in enumerate(samplings))))
    slots, positions = np.arange(3), np.full(3, 2)
    needs = state.sampling.needs_at(slots, positions)
    vocabulary = WholeVocabulary(50, reference_backend())
    sampler = Sampler(state.sampling, vocabulary)
    for broken in range(3):
        logits = torch.randn(3, 50)
        logits[broken, 7] = float("nan")
        drawn = sampler.draw(logits, slots, positions, needs, None)
        assert drawn.choice.valid.tolist() == [row != broken for row in range(3)]
        assert 0 <= int(drawn.choice.token_ids.min()) <= int(drawn.choice.token_ids.max()) < 50
    logits = torch.randn(2, 50)
    logits[1, 3] = float("inf")
    scores = TokenScores(logits, torch.tensor([0, 0]), [LogprobsParams()] * 2, vocabulary).read()
    assert scores[0] is not None
    assert scores[1] is None


def test_named_tokens_and_ties_are_scored_row_by_row() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [4.0, 1.0, 2.0, 4.0]])
    wanted = [LogprobsParams(top_n=2, token_ids=(3,)), LogprobsParams(top_n=0, token_ids=(2, 0))]
    vocabulary = WholeVocabulary(logits.shape[1], reference_backend())
    first, second = TokenScores(logits, torch.tensor([2, 1]), wanted, vocabulary).read()
    expected = logits.log_softmax(-1)
    assert first is not None
    assert second is not None
    assert (first.rank, first.top_token_ids, first.top_ranks) == (1, (1, 2, 3), (1, 1, 4))
    assert (second.rank, second.top_token_ids, second.top_ranks) == (4, (2, 0), (3, 1))
    assert second.logprob == pytest.approx(float(expected[1, 1]))
    assert first.top_logprobs == pytest.approx(expected[0, [1, 2, 3]].tolist())


@pytest.fixture(scope="module")
def spec(tiny_model: ResolvedModel) -> ModelSpec:
    return read_spec(tiny_model.config)


def test_sizes_follow_flags_and_memory(spec: ModelSpec) -> None:
    given = choose_sizes(TINY_LIMITS, spec, 1000, CPU, free_bytes=10**9)
    assert given == EngineSizes(128, 16, 16, 48, 256, 97)
    by_memory = choose_sizes(EngineConfig(kv_cache_memory_fraction=0.5), spec, 1000, CPU, free_bytes=4000)
    assert (by_memory.num_blocks, by_memory.max_total_tokens) == (2, 64)
    by_use = choose_sizes(EngineConfig(max_batch_size=4, max_total_tokens=100), spec, 1000, CPU, free_bytes=10**12)
    assert (by_use.num_blocks, by_use.max_total_tokens) == (16, 100)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (EngineConfig(), "raise --kv-cache-memory-fraction"),
        (EngineConfig(max_batch_total_tokens=3200), "--max-batch-total-tokens 3200: .* lower it"),
        (EngineConfig(max_batch_total_tokens=32, max_total_tokens=33), "--max-total-tokens 33: the KV cache holds 32"),
        (EngineConfig(max_total_tokens=257), "--max-total-tokens 257 is more than the model's context of 256"),
        (EngineConfig(max_total_tokens=1), "--max-total-tokens 1: .* at least 2"),
        (EngineConfig(max_batch_size=9, max_batch_prefill_tokens=8), "--max-batch-size 9 .* lower the one"),
    ],
)
def test_sizes_that_cannot_be_had_say_what_to_do(spec: ModelSpec, config: EngineConfig, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        choose_sizes(config, spec, block_bytes=1000, device=CPU, free_bytes=1500)


@pytest.mark.parametrize("flags", [{"num_threads": 10_000}, {"max_total_tokens": 257}, {"max_total_tokens": 1}])
def test_flags_are_refused_before_the_weights_are_read(tiny_model: ResolvedModel, flags: dict[str, int]) -> None:
    without_weights = dataclasses.replace(tiny_model, weight_files=())
    (name, value), *_ = flags.items()
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {value}"):
        Worker(without_weights, "float32", EngineConfig(**flags), SilentProgress())


def test_flags_that_fit_pass(spec: ModelSpec) -> None:
    check_flags(
        EngineConfig(num_threads=1, max_total_tokens=256, max_batch_size=8, max_batch_prefill_tokens=8), spec, CPU
    )


@pytest.mark.parametrize(
    ("flags", "size", "tokens"),
    [({}, 64, 512), ({"max_batch_size": 600}, 600, 600), ({"max_batch_prefill_tokens": 8}, 8, 8)],
)
def test_defaults_of_the_batch_give_way_to_flags(
    spec: ModelSpec, flags: dict[str, int], size: int, tokens: int
) -> None:
    sizes = choose_sizes(EngineConfig(**flags), spec, 1000, CPU, free_bytes=10**9)
    assert (sizes.max_num_sequences, sizes.max_batch_tokens) == (size, tokens)


def test_the_cache_is_one_allocation() -> None:
    sizes = {"num_layers": 3, "num_kv_heads": 2, "block_size": 16, "head_dim": 8, "dtype": torch.float16}
    cache = KVCache(num_blocks=5, device=CPU, **sizes)
    assert cache.num_bytes == 5 * kv_block_bytes(**sizes)
    assert cache.layers[2].value.shape == (5, 2, 16, 8)
    storages = {tensor.untyped_storage().data_ptr() for layer in cache.layers for tensor in (layer.key, layer.value)}
    assert len(storages) == 1
    assert cache.layers[1].key[4, 1].is_contiguous()


def test_free_memory_heeds_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert free_memory_bytes(CPU, tmp_path) == 4000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/box\n")
    inner, outer = tmp_path / "sys/fs/cgroup/pod/box", tmp_path / "sys/fs/cgroup/pod"
    inner.mkdir(parents=True)
    for directory, limit in ((inner, "max"), (outer, "1000000")):
        (directory / "memory.max").write_text(f"{limit}\n")
        (directory / "memory.current").write_text("300000\n")
        (directory / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert free_memory_bytes(CPU, tmp_path) == 750_000


def test_free_memory_of_this_machine() -> None:
    assert 1 << 20 < free_memory_bytes(CPU) < 1 << 50


def test_a_rank_gets_the_gpu_of_its_number_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="--device cuda: rank 0 has no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == choose_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="rank 2 has no GPU of 2"):
        choose_device("auto", 2)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "5000 100000"}, 1),
        ({"pod/cpu.max": "200000 100000", "cpu.max": "400000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_usable_cores_heed_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert usable_cores(tmp_path) == cores
