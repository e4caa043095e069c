"""The loader: order, shares of processes, exact resume at every step."""
import jax
import numpy as np
import pytest
from absl import logging

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import PackedBatch, StepShape, build_step, plan_epoch
from ssd4rec_jax.data.pipeline import PackedSteps, step_loader

SHAPE = StepShape(rows=4, tokens=32, segments=8)


@pytest.fixture(scope='module')
def epoch():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 900, 150)
    examples = ExampleIndex(
        items=rng.integers(1, 50, 1000).astype(np.int32),
        start=start, stop=start + rng.integers(1, 20, 150),
        target=rng.integers(1, 50, 150).astype(np.int32), cut=0,
    )
    plan = plan_epoch(examples.lengths, SHAPE, seed=0, epoch=0)
    assert plan.num_steps > 10
    return examples, plan


def assert_same(ours: list[PackedBatch], expected: list[PackedBatch]):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        for name, x, y in zip(PackedBatch._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


def built(epoch, rows=slice(None)) -> list[PackedBatch]:
    examples, plan = epoch
    return [build_step(examples, plan, step, rows) for step in range(plan.num_steps)]


def test_source_is_random_access_over_the_plan(epoch):
    source = PackedSteps(*epoch, slice(None))
    assert len(source) == epoch[1].num_steps
    assert_same([source[7], source[0]], [built(epoch)[7], built(epoch)[0]])


def test_loader_gives_the_plans_steps_in_order_as_packed_batches_of_arrays(epoch):
    batches = list(step_loader(*epoch))
    assert_same(batches, built(epoch))
    for batch in batches:
        assert type(batch) is PackedBatch
        assert all(type(a) is np.ndarray and a.dtype == np.int32 for a in jax.tree.leaves(batch))


def test_loader_starts_at_any_step(epoch):
    for start in range(epoch[1].num_steps + 1):
        assert_same(list(step_loader(*epoch, start_step=start)), built(epoch)[start:])


@pytest.mark.parametrize('threads, prefetch', [(1, 1), (2, 4), (4, 1), (0, 0)])
def test_the_order_does_not_depend_on_threads(epoch, threads, prefetch, monkeypatch):
    warned = []
    monkeypatch.setattr(logging, 'warning', lambda *text: warned.append(text))
    assert_same(list(step_loader(*epoch, num_threads=threads, prefetch=prefetch)), built(epoch))
    assert not warned  # grain warns of a buffer that leaves threads idle


@pytest.mark.parametrize('start_step', [0, 3])
def test_checkpoint_at_each_step_restores_the_rest(epoch, start_step):
    iterator = step_loader(*epoch, start_step=start_step)
    states = [iterator.get_state()]
    for _ in iterator:
        states.append(iterator.get_state())
    for taken, state in enumerate(states):
        fresh = step_loader(*epoch, start_step=start_step)
        fresh.set_state(state)
        assert_same(list(fresh), built(epoch)[start_step + taken:])


def test_a_state_restores_into_an_iterator_in_the_middle_with_other_threads(epoch):
    iterator = step_loader(*epoch)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    other = step_loader(*epoch, num_threads=4, prefetch=8)
    for _ in range(9):
        next(other)
    other.set_state(state)
    assert_same(list(other), built(epoch)[5:])


@pytest.mark.parametrize('processes', [2, 4])
def test_shares_of_the_processes_concatenate_to_the_global_steps(epoch, processes):
    shares = [list(step_loader(*epoch, rows=rows)) for rows in np.split(np.arange(4), processes)]
    for whole, *parts in zip(built(epoch), *shares, strict=True):
        assert_same([jax.tree.map(lambda *part: np.concatenate(part), *parts)], [whole])


def test_processes_may_resume_on_another_process_count(epoch):
    iterator = step_loader(*epoch, rows=np.array([1]))
    for _ in range(6):
        next(iterator)
    resumed = step_loader(*epoch, rows=np.array([0, 1]))
    resumed.set_state(iterator.get_state())
    assert_same(list(resumed), built(epoch, slice(0, 2))[6:])
