"""Packing: literal histories in, literal rows out; then properties on random ones."""
import jax
import numpy as np
import pytest
from absl import logging

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import (
    EpochPlan,
    PackedBatch,
    StepShape,
    build_step,
    choose_step_shape,
    padded_step_shape,
    plan_epoch,
)
from ssd4rec_jax.errors import ConfigError


def index_of(histories: list[list[int]], targets=None) -> ExampleIndex:
    lengths = np.array([len(h) for h in histories])
    stop = np.cumsum(lengths)
    return ExampleIndex(
        items=np.concatenate(histories).astype(np.int32), start=stop - lengths, stop=stop,
        target=np.asarray(targets or range(101, 101 + len(histories)), np.int32), cut=0,
    )


def random_index(seed: int, examples: int = 300, longest: int = 40) -> ExampleIndex:
    """Overlapping histories, as prefixes are, anywhere in a flat array without item 0."""
    rng = np.random.default_rng(seed)
    items = rng.integers(1, 1000, 5000).astype(np.int32)
    length = np.minimum(rng.geometric(0.12, examples), longest)
    start = rng.integers(0, len(items) - longest, examples)
    target = rng.integers(1, 1000, examples).astype(np.int32)
    return ExampleIndex(items, start, start + length, target, cut=0)


def packed(
    histories: list[list[int]], shape: StepShape, step: int = 0, rows: slice = slice(None)
) -> PackedBatch:
    examples = index_of(histories)
    plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0, shuffle=False)
    return build_step(examples, plan, step, rows)


def assert_batch(batch: PackedBatch, **expected):
    for name, rows in expected.items():
        array = getattr(batch, name)
        assert array.dtype == np.int32, name
        assert array.tolist() == rows, name


def all_steps(examples: ExampleIndex, plan: EpochPlan) -> list[PackedBatch]:
    return [build_step(examples, plan, step) for step in range(plan.num_steps)]


# ---- literal rows


def test_two_histories_share_a_row_and_the_third_opens_the_next():
    assert_batch(
        packed([[1, 2, 3], [4, 5], [6, 7]], StepShape(rows=2, tokens=6, segments=3)),
        items=[[1, 2, 3, 4, 5, 0], [6, 7, 0, 0, 0, 0]],
        segment_ids=[[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]],
        starts=[[0, 3, 0], [0, 0, 0]],
        lengths=[[3, 2, 0], [2, 0, 0]],
        targets=[[101, 102, 0], [103, 0, 0]],
        example_ids=[[0, 1, -1], [2, -1, -1]],
    )


def test_histories_that_fill_a_row_exactly_leave_no_padding():
    assert_batch(
        packed([[1, 2], [3, 4], [5, 6, 7, 8]], StepShape(rows=2, tokens=4, segments=2)),
        items=[[1, 2, 3, 4], [5, 6, 7, 8]],
        segment_ids=[[1, 1, 2, 2], [1, 1, 1, 1]],
    )


def test_the_gap_at_a_rows_end_takes_the_longest_waiting_history_that_fits():
    assert_batch(
        packed([[1, 2, 3], [4] * 4, [5], [6, 6], [7, 7]], StepShape(rows=3, tokens=5, segments=4)),
        items=[[1, 2, 3, 6, 6], [4, 4, 4, 4, 5], [7, 7, 0, 0, 0]],
        example_ids=[[0, 3, -1, -1], [1, 2, -1, -1], [4, -1, -1, -1]],
        targets=[[101, 104, 0, 0], [102, 103, 0, 0], [105, 0, 0, 0]],
    )


def test_a_gap_takes_several_histories():
    assert_batch(
        packed([[1, 1], [2] * 6, [3], [4] * 6, [5, 5]], StepShape(rows=3, tokens=6, segments=8)),
        items=[[1, 1, 5, 5, 3, 0], [2] * 6, [4] * 6],
    )


def test_only_histories_within_as_many_as_a_row_holds_are_brought_forward():
    assert_batch(
        packed([[1, 1], [2, 2], [3, 3], [4]], StepShape(rows=3, tokens=3, segments=2)),
        items=[[1, 1, 0], [2, 2, 4], [3, 3, 0]],
    )


def test_a_row_closes_at_the_segment_cap_though_tokens_are_left():
    assert_batch(
        packed([[1], [2], [3]], StepShape(rows=2, tokens=4, segments=2)),
        items=[[1, 2, 0, 0], [3, 0, 0, 0]],
        lengths=[[1, 1], [1, 0]],
        example_ids=[[0, 1], [2, -1]],
    )


def test_empty_rows_come_only_at_the_end_of_the_last_step():
    histories, shape = [[1, 2], [3, 4], [5, 6], [7, 8]], StepShape(rows=3, tokens=3, segments=1)
    assert_batch(packed(histories, shape), items=[[1, 2, 0], [3, 4, 0], [5, 6, 0]])
    assert_batch(
        packed(histories, shape, step=1),
        items=[[7, 8, 0], [0, 0, 0], [0, 0, 0]], segment_ids=[[1, 1, 0], [0, 0, 0], [0, 0, 0]],
        starts=[[0], [0], [0]], lengths=[[2], [0], [0]], targets=[[104], [0], [0]],
        example_ids=[[3], [-1], [-1]],
    )


def test_a_process_whose_rows_are_all_empty_gets_padding():
    assert_batch(
        packed([[1, 2]], StepShape(rows=2, tokens=2, segments=2), rows=slice(1, 2)),
        items=[[0, 0]], segment_ids=[[0, 0]], starts=[[0, 0]], lengths=[[0, 0]], targets=[[0, 0]],
        example_ids=[[-1, -1]],
    )


def test_a_single_example():
    examples = index_of([[7, 8, 9]])
    shape = choose_step_shape(examples.lengths, targets_per_step=1024, tokens_per_row=8192)
    plan = plan_epoch(examples.lengths, shape, seed=1, epoch=0)
    assert shape == StepShape(rows=1, tokens=16, segments=8)
    assert plan.num_steps == 1
    assert_batch(
        build_step(examples, plan, 0),
        items=[[7, 8, 9] + [0] * 13], example_ids=[[0] + [-1] * 7],
    )


def test_fill_and_targets_count_what_is_really_there():
    plan = plan_epoch(np.array([3, 2, 2, 2]), StepShape(2, 4, 4), seed=0, epoch=0, shuffle=False)
    assert plan.row_starts.tolist() == [0, 1, 3, 4, 4]  # [3], [2, 2], [2], []
    assert plan.num_steps == 2
    assert plan.fill == 9 / 16
    assert plan.per_step(np.ones(4, int)).tolist() == [3, 1]


# ---- properties

SHAPES = [StepShape(1, 64, 64), StepShape(4, 48, 5), StepShape(3, 200, 24), StepShape(2, 800, 120)]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_every_example_once_with_its_own_items_in_consecutive_segments(seed, shape):
    examples = random_index(seed)
    plan = plan_epoch(examples.lengths, shape, seed=seed, epoch=3)
    seen = []
    for batch in all_steps(examples, plan):
        assert batch.items.shape == batch.segment_ids.shape == (shape.rows, shape.tokens)
        for r in range(shape.rows):
            at = 0
            count = int(np.sum(batch.example_ids[r] >= 0))
            assert count <= shape.segments
            assert (batch.example_ids[r, count:] == -1).all()
            for s, e in enumerate(batch.example_ids[r, :count]):
                length = examples.stop[e] - examples.start[e]
                assert (batch.starts[r, s], batch.lengths[r, s]) == (at, length)
                assert batch.items[r, at:at + length].tolist() == examples.items[
                    examples.start[e]:examples.stop[e]].tolist()
                assert set(batch.segment_ids[r, at:at + length]) == {s + 1}
                assert batch.targets[r, s] == examples.target[e]
                at += length
                seen.append(int(e))
            assert not batch.items[r, at:].any() and not batch.segment_ids[r, at:].any()
    assert sorted(seen) == list(range(len(examples)))


def rows_by_the_rule(lengths, tokens, segments) -> list[list[int]]:
    """plan_epoch's rule on a list of waiting examples, one history at a time."""
    rows, waiting = [], list(range(len(lengths)))
    while waiting:
        row, room = [], tokens
        while waiting and len(row) < segments and lengths[waiting[0]] <= room:
            row.append(waiting.pop(0))
            room -= lengths[row[-1]]
        while waiting and len(row) < segments and room > tokens // 256:
            fitting = [e for e in waiting[:segments] if lengths[e] <= room]
            if not fitting:
                break
            row.append(max(fitting, key=lambda e: lengths[e]))
            waiting.remove(row[-1])
            room -= lengths[row[-1]]
        rows.append(row)
    return rows


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('seed', range(5))
def test_rows_are_those_of_the_rule_written_on_lists(shape, seed):
    lengths = random_index(seed).lengths
    plan = plan_epoch(lengths, shape, seed=0, epoch=0, shuffle=False)
    rows = [plan.order[a:b].tolist() for a, b in zip(plan.row_starts[:-1], plan.row_starts[1:], strict=True)]
    expected = rows_by_the_rule(lengths.tolist(), shape.tokens, shape.segments)
    assert rows == expected + [[]] * (-len(expected) % shape.rows)


@pytest.mark.parametrize('parts', [2, 3, 6])
def test_row_slices_of_the_processes_concatenate_to_the_global_step(parts):
    examples = random_index(2)
    plan = plan_epoch(examples.lengths, StepShape(6, 64, 12), seed=0, epoch=0)
    share = 6 // parts
    for step in range(plan.num_steps):
        global_step = build_step(examples, plan, step)
        shares = [slice(p * share, (p + 1) * share) for p in range(parts)]
        pieces = [build_step(examples, plan, step, rows) for rows in shares]
        jax.tree.map(
            lambda whole, *split: np.testing.assert_array_equal(whole, np.concatenate(split)), global_step, *pieces
        )


def test_the_shuffle_depends_on_seed_and_epoch_alone():
    lengths = random_index(0).lengths
    order = {
        (seed, epoch): plan_epoch(lengths, SHAPES[1], seed=seed, epoch=epoch).order.tolist()
        for seed in (1, 2) for epoch in (0, 1)
    }
    assert len({tuple(o) for o in order.values()}) == 4
    assert all(sorted(o) == list(range(len(lengths))) for o in order.values())
    again = plan_epoch(lengths, SHAPES[1], seed=1, epoch=0)
    assert again.order.tolist() == order[1, 0]


def test_evaluation_packs_every_user_exactly_once():
    examples = random_index(4, examples=217)
    shape = choose_step_shape(examples.lengths, targets_per_step=50, tokens_per_row=128)
    plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0, shuffle=False)
    batches = all_steps(examples, plan)
    ids = np.concatenate([b.example_ids[b.example_ids >= 0] for b in batches])
    assert sorted(ids.tolist()) == list(range(217))
    assert np.any(batches[-1].example_ids[-1] == -1)  # the last batch is partial, and was kept


def test_a_history_longer_than_a_row_is_refused_by_the_plan():
    with pytest.raises(ConfigError, match='history of 9 items does not fit rows of 8 tokens'):
        plan_epoch(np.array([3, 9]), StepShape(1, 8, 8), seed=0, epoch=0)


# ---- the shape of a step


def lognormal_lengths(seed, mean, sigma, examples, longest):
    drawn = np.random.default_rng(seed).lognormal(mean, sigma, examples)
    return np.clip(drawn, 1, longest).astype(np.int64)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
    return said


SHORT = lognormal_lengths(0, 1.9, 0.8, 60_000, 200)
LONG = lognormal_lengths(1, 3.6, 0.8, 60_000, 800)
HEAVY_TAIL = lognormal_lengths(2, 1.5, 1.3, 80_000, 800)
CASES = {  # lengths, arguments, rows expected
    'short histories': (SHORT, {}, 2),
    'short histories, eight devices': (SHORT, {'row_multiple': 8}, 8),
    'long histories': (LONG, {}, 7),
    'long histories, rows asked for': (LONG, {'rows': 12, 'row_multiple': 4}, 12),
    'heavy tail, eight devices': (HEAVY_TAIL, {'row_multiple': 8}, 8),
    'one item each': (np.ones(50_000, np.int64), {}, 1),
    'all alike': (np.full(20_000, 37), {}, 5),
}


@pytest.mark.parametrize('name', CASES)
def test_a_step_holds_the_targets_asked_for_on_average(name, warnings):
    lengths, arguments, rows = CASES[name]
    shape = choose_step_shape(lengths, targets_per_step=1024, tokens_per_row=8192, **arguments)
    plan = plan_epoch(lengths, shape, seed=0, epoch=0)
    assert shape.rows == rows
    assert shape.tokens % 16 == 0 and shape.tokens <= 8192 and shape.segments <= shape.tokens
    assert abs(plan.per_step(np.ones(len(lengths), int))[:-1].mean() - 1024) < 0.02 * 1024
    assert not warnings


@pytest.mark.parametrize('name', CASES)
def test_all_steps_but_the_last_are_full(name):
    lengths, arguments, _ = CASES[name]
    shape = choose_step_shape(lengths, targets_per_step=1024, tokens_per_row=8192, **arguments)
    plan = plan_epoch(lengths, shape, seed=0, epoch=0)
    full_steps = lengths[plan.order[:plan.row_starts[-1 - shape.rows]]].sum()
    assert full_steps / ((plan.num_steps - 1) * shape.rows * shape.tokens) > 0.99


def test_the_segment_cap_costs_little_fill_and_few_slots():
    lengths, _, _ = CASES['long histories']
    shape = choose_step_shape(lengths, targets_per_step=1024, tokens_per_row=8192)
    free = StepShape(shape.rows, shape.tokens, shape.tokens)
    steps, without_cap = (plan_epoch(lengths, s, seed=0, epoch=0).num_steps for s in (shape, free))
    assert steps <= 1.005 * without_cap + 1
    assert shape.rows * shape.segments < 1.3 * 1024


def test_a_longer_history_grows_the_rows_and_says_so(warnings):
    lengths = np.append(np.full(5000, 40), 20_000)
    shape = choose_step_shape(lengths, targets_per_step=1024, tokens_per_row=8192)
    assert shape.rows == 2  # 45,000 tokens a step are two rows of 20,000, not six
    assert 20_000 <= shape.tokens < 30_000
    assert len(warnings) == 1
    assert all(w in warnings[0] for w in ('20000 items', 'data.max_history', 'tokens_per_row=8192'))
    assert plan_epoch(lengths, shape, seed=0, epoch=0).row_starts[-1] == 5001


def test_a_history_longer_than_a_devices_share_grows_the_rows_and_says_so(warnings):
    lengths = np.append(np.full(5000, 9), 6000)
    shape = choose_step_shape(lengths, targets_per_step=1024, tokens_per_row=8192, row_multiple=8)
    assert (shape.rows, shape.tokens) == (8, 6000)
    assert len(warnings) == 1 and 'train.targets_per_step=1024' in warnings[0]


@pytest.mark.parametrize('multiple, expected', [(16, 7456), (64, 7488)])
def test_a_rows_tokens_are_a_multiple_of_what_the_devices_want(multiple, expected):
    shape = choose_step_shape(
        np.full(5000, 51), targets_per_step=1023.3, tokens_per_row=8192, token_multiple=multiple
    )
    assert (shape.rows, shape.tokens) == (7, expected)
    assert choose_step_shape(np.full(5000, 51), targets_per_step=1023.3, tokens_per_row=8192).tokens == 7456


def test_a_row_has_no_more_slots_than_tokens():
    lengths = np.append(np.ones(5000, np.int64), np.full(100, 4))
    shape = choose_step_shape(lengths, targets_per_step=14, tokens_per_row=16)
    assert shape.segments == shape.tokens == 16


@pytest.mark.parametrize('tokens_per_row', [500, 2048, 8192])
def test_rows_stay_within_tokens_per_row_whatever_the_targets(tokens_per_row):
    lengths = random_index(3, examples=5000).lengths
    for targets in range(50, 4000, 50):
        shape = choose_step_shape(lengths, targets_per_step=targets, tokens_per_row=tokens_per_row)
        assert shape.tokens <= tokens_per_row


def test_rows_that_do_not_divide_over_devices_are_refused():
    lengths = np.ones(10, np.int64)
    with pytest.raises(ConfigError, match='rows_per_step=6 must be a multiple of the 4 devices'):
        choose_step_shape(lengths, targets_per_step=4, tokens_per_row=16, rows=6, row_multiple=4)


@pytest.mark.parametrize('row_multiple', [1, 8])
@pytest.mark.parametrize('tokens_per_row', [16, 128, 8192])
def test_a_small_epoch_is_one_step_in_any_order(row_multiple, tokens_per_row):
    lengths = random_index(6, examples=200).lengths
    shape = choose_step_shape(
        lengths, targets_per_step=200, tokens_per_row=tokens_per_row, row_multiple=row_multiple
    )
    orders = [lengths, np.sort(lengths), np.sort(lengths)[::-1]]
    orders += [np.random.default_rng(k).permutation(lengths) for k in range(20)]
    assert {plan_epoch(o, shape, seed=0, epoch=0, shuffle=False).num_steps for o in orders} == {1}


def test_a_small_epoch_takes_no_larger_step_than_it_needs():
    lengths = np.full(10, 20)
    shape = choose_step_shape(lengths, targets_per_step=1024, tokens_per_row=8192)
    assert shape == StepShape(rows=1, tokens=208, segments=16)


def test_padded_rows_hold_one_history_each():
    lengths = np.array([3, 17, 5, 2, 9])
    shape = padded_step_shape(lengths, targets_per_step=2)
    assert shape == StepShape(2, 32, 1)
    examples = index_of([list(range(1, n + 1)) for n in lengths])
    plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0)
    assert plan.num_steps == 3 and plan.fill == 36 / (6 * 32)
    assert np.diff(plan.row_starts).tolist() == [1, 1, 1, 1, 1, 0]
    batch = build_step(examples, plan, 0)
    assert batch.lengths[:, 0].tolist() == lengths[plan.order[:2]].tolist() and batch.items.shape == (2, 32)
    assert padded_step_shape(lengths, targets_per_step=1024, row_multiple=4) == StepShape(8, 32, 1)
    every = padded_step_shape(lengths, targets_per_step=14.4, every_prefix=True)
    assert every == StepShape(2, 32, 1), '7.2 targets of a history'
