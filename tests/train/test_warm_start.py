"""What an update reads, and what it is compiled like."""
import numpy as np
import pytest

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import train_examples, train_histories
from ssd4rec_jax.data.packing import build_step
from ssd4rec_jax.parallel.mesh import place_rows
from ssd4rec_jax.train.program import HASTY_STEPS
from ssd4rec_jax.train.warm_start import examples_of, users_to_read
from tests.tiny import trainer_in


def dataset(*lengths: int) -> SequenceDataset:
    """User u has the items 10 u + 1, 10 u + 2, ..."""
    return SequenceDataset(
        name='literal', items=np.concatenate([10 * u + 1 + np.arange(n) for u, n in enumerate(lengths)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]), user_ids=np.arange(len(lengths)), item_ids=np.arange(99),
        fingerprint='literal',
    )


def test_histories_that_have_grown_are_read_with_half_as_many_others():
    log = dataset(5, 6, 5, 5, 7, 4)  # users 1 and 4 have grown, and 5 is new
    before = np.array([5, 5, 5, 5, 5])
    chosen = [users_to_read(log, before, seed=seed) for seed in range(20)]
    assert all(read[[1, 4, 5]].all() and read.sum() == 5 for read in chosen)
    assert len({read.tobytes() for read in chosen}) == 3


def test_examples_of_some_users():
    log, users = dataset(5, 6, 5), np.array([False, True, False])
    prefixes = examples_of(train_examples(log), users, log)
    assert list(zip(prefixes.lengths, prefixes.target, strict=True)) == [(1, 12), (2, 13), (3, 14)]
    cut = examples_of(train_examples(log, max_history=2), users, log)
    assert list(zip(cut.lengths, cut.target, strict=True)) == [(1, 12), (2, 13), (2, 14)]
    passes = examples_of(train_histories(log), users, log)
    assert (passes.start.tolist(), passes.stop.tolist()) == ([5], [8])
    np.testing.assert_array_equal(np.flatnonzero(passes.target_counts(99)), [12, 13, 14])
    # Users with too few items to train on: everybody's are read.
    short = dataset(5, 1)
    assert len(examples_of(train_examples(short), np.array([False, True]), short)) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_few_steps_are_compiled_in_haste_and_compute_the_same(tmp_path):
    trainer = trainer_in(tmp_path / 'run')
    shape = trainer.session.progress.shape
    batch = place_rows(build_step(trainer.examples, trainer._plan(), 0), trainer.program.mesh, shape.rows)
    losses, tables = [], []
    for steps in (HASTY_STEPS, HASTY_STEPS + 1):
        step = trainer.program.compile(shape, steps=steps)
        state, loss = step(trainer.program.create_state(), batch, np.uint32(1), np.uint32(0), *trainer._constants)
        losses.append(float(loss))
        tables.append(np.asarray(state.params['item_embedding']))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-4, atol=1e-6)
