"""The sampled softmax compared with the full one and with a loop; row-wise Adagrad by hand; one step on any mesh."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh, place_rows, shardings
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.train.gradients import RowGradients
from ssd4rec_jax.train.losses import SAMPLED_SOFTMAX
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.row_updates import SparseTableOptimizer, rounded, update_rows
from ssd4rec_jax.train.sampled_softmax import draw_negatives, sampled_losses
from ssd4rec_jax.train.state import init_state, make_train_step
from tests.packed import pack

pytestmark = pytest.mark.slow  # Compiling for many meshes and kills of whole runs take minutes.

ROWS, WIDTH = 30, 5
SEED, EPOCH = np.uint32(5), np.uint32(0)


def drawn(rng, slots=6):
    """A row of readouts, a table and targets; the last slot has no target."""
    readout, table = rng.normal(size=(1, slots, WIDTH)), rng.normal(size=(ROWS, WIDTH))
    targets = rng.integers(1, ROWS, (1, slots))
    targets[0, -1] = 0
    return readout, table, targets


def by_hand(readout, table, targets, negatives, expected, probability):
    """The sum of the losses, computed one target and one candidate at a time."""
    real = [t for t in targets[0] if t]
    loss = 0.0
    for slot, target in enumerate(targets[0]):
        if not target:
            continue
        own = np.exp(readout[0, slot] @ table[target])
        total = own
        for candidate in [*negatives, *real]:
            if candidate != target:
                times = expected + (len(real) - 1) * probability[candidate]
                total += np.exp(readout[0, slot] @ table[candidate]) / times
        loss += np.log(total) - np.log(own)
    return loss


def test_loss_equals_a_loop_over_candidates(x64):
    rng = np.random.default_rng(0)
    readout, table, targets = drawn(rng)
    targets[0, 1] = targets[0, 0]  # Two slots have the same target, so neither is a negative for the other.
    negatives, probability = rng.integers(0, ROWS, 8), rng.dirichlet(np.ones(ROWS))
    negatives[3] = targets[0, 2]  # A negative happens to be a target.
    arrays = map(jnp.asarray, (readout, table, targets, targets > 0, negatives))
    losses = sampled_losses(*arrays, 8 / ROWS, jnp.asarray(probability))
    assert losses[0, -1] == 0
    expected = by_hand(readout, table, targets, negatives, 8 / ROWS, probability)
    assert float(losses.sum()) == pytest.approx(expected, rel=1e-12)


def test_the_sample_s_partition_is_the_full_one_in_the_mean(x64):
    """exp(loss) is partition / exp(own score); the row's other targets are drawn with their probabilities."""
    rng = np.random.default_rng(1)
    readout, table = rng.normal(size=(1, 6, WIDTH)), jnp.asarray(rng.normal(size=(ROWS, WIDTH)))
    probability = jnp.concatenate([jnp.zeros(1), jnp.asarray(rng.dirichlet(np.ones(ROWS - 1)))])
    target = 7

    def estimate(key):
        for_others, for_negatives = jax.random.split(key)
        others = jax.random.choice(for_others, ROWS, (1, 5), p=probability)
        targets = jnp.concatenate([jnp.array([[target]]), others], axis=1)
        negatives = jax.random.randint(for_negatives, (4,), 0, ROWS)
        losses = sampled_losses(readout, table, targets, targets > 0, negatives, 4 / ROWS, probability)
        return jnp.exp(losses[0, 0])

    estimates = np.asarray(jax.lax.map(estimate, jax.random.split(jax.random.key(0), 40_000), batch_size=2000))
    full = np.exp(table @ readout[0, 0]).sum() / np.exp(table[target] @ readout[0, 0])
    error = estimates.std() / 200
    assert error < 0.02 * full, 'the sample is too small to tell'
    assert abs(estimates.mean() - full) < 4 * error


def test_negatives_are_uniform_over_all_rows_and_each_step_s_own():
    drawn = np.concatenate([draw_negatives(SEED, step, 1000, ROWS) for step in range(30)])
    counts = np.bincount(drawn, minlength=ROWS)
    assert len(counts) == ROWS and abs(counts - 1000).max() < 5 * np.sqrt(1000)
    assert (draw_negatives(SEED, 3, 50, ROWS) == draw_negatives(SEED, 3, 50, ROWS)).all()


def test_row_wise_adagrad_by_hand_leaves_other_rows_alone():
    rng = np.random.default_rng(2)
    table, squares = rng.normal(size=(ROWS, WIDTH)).astype(np.float32), rng.random(ROWS).astype(np.float32)
    ids = np.array([3, 0, 29, ROWS + 1], np.int32)  # The last id lies beyond the table.
    grads = rng.normal(size=(4, WIDTH)).astype(np.float32)
    new_table, new_squares = jax.jit(lambda *args: update_rows(
        device_mesh(jax.devices()[:1]), TableShard(ROWS), *args, 0.1, jax.random.key(0)
    ))(table, squares, RowGradients(ids, grads))
    for row in range(ROWS):
        if row not in ids:
            assert (new_table[row] == table[row]).all() and new_squares[row] == squares[row]
            continue
        g = grads[list(ids).index(row)].astype(np.float64)
        expected = squares[row] + np.mean(g**2)
        assert new_squares[row] == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(new_table[row], table[row] - 0.1 * g / np.sqrt(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('data, model', [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize('skewed', [False, True])
def test_gradients_of_many_devices_add_up_before_they_update(data, model, skewed):
    """skewed: nearly all rows belong to one device, which receives them in several rounds."""
    rng = np.random.default_rng(4)
    rows = 64 * 8 - 3
    shard = TableShard(rows, model)
    table, squares = rng.normal(size=(rows, WIDTH)).astype(np.float32), rng.random(rows).astype(np.float32)
    ids, grads = np.full((8, 24), shard.padded, np.int32), rng.normal(size=(8, 24, WIDTH)).astype(np.float32)
    total = np.zeros((rows, WIDTH))
    for device in range(8):
        n = 24 - device  # The remaining ids lie beyond the table.
        some = np.sort(rng.choice(30 if skewed else rows, n, replace=False))
        ids[device, :n] = some if device != 3 else rows - n + np.arange(n)
        np.add.at(total, ids[device, :n], grads[device, :n])
    mesh = device_mesh(jax.devices()[:8], model)
    args = {'item_embedding': (shard.pad(table), shard.pad(squares))}
    args = jax.device_put(args, shardings(args, mesh))['item_embedding']
    given = place_rows(RowGradients(ids.ravel(), grads.reshape(-1, WIDTH)), mesh, ids.size)
    updated = jax.jit(lambda *args: update_rows(mesh, shard, *args, 0.1, jax.random.key(0)))
    new_table, new_squares = updated(*args, given)
    expected = squares + np.mean(total**2, axis=1)
    np.testing.assert_allclose(new_squares[:rows], expected, rtol=1e-5)
    np.testing.assert_allclose(
        new_table[:rows], table - 0.1 * total / np.sqrt(expected)[:, None], rtol=1e-5, atol=1e-5
    )


def test_rounding_to_bfloat16_is_right_in_the_mean():
    """1 + 2^-11 lies a sixteenth of the way from 1 to the next bfloat16; -3 is a bfloat16."""
    x = jnp.tile(jnp.array([[1 + 2**-11, -3.0]]), (20_000, 1))
    found = np.asarray(rounded(x, jnp.bfloat16, jax.random.key(0)), np.float64)
    assert set(found[:, 0]) == {1.0, 1 + 2**-7} and (found[:, 1] == -3).all()
    assert abs(np.mean(found[:, 0] > 1) - 1 / 16) < 0.008


ITEMS = 40
CONFIG = ModelConfig(hidden_size=16, num_layers=2, d_state=8, headdim=8, beta=0.3, dropout_prob=0.3, dtype='float32')


@pytest.fixture(scope='module')
def batch():
    rng = np.random.default_rng(0)
    example, rows = 0, []
    for r in range(8):
        rows.append([(example + k, rng.integers(1, ITEMS + 1, rng.integers(1, 6)).tolist()) for k in range(r % 5)])
        example += r % 5
    return pack(rows, tokens=32, segments=8, targets={e: int(rng.integers(1, ITEMS + 1)) for e in range(example)})


BY_ROW = SparseTableOptimizer(optax.adam(1e-2), 0.1)


def after_steps(batch, data, model, steps=3, negatives=12, config=CONFIG, optimizer=BY_ROW):
    mesh = device_mesh(jax.devices()[:data * model], model)
    net, params = init_network(config, ITEMS, seed=0)
    state = init_state(net, params, optimizer, mesh)
    probability = np.random.default_rng(3).dirichlet(np.ones(ITEMS + 1)).astype(np.float32)
    probability = {'item_embedding': net.shard(mesh).pad(probability)}
    probability = jax.device_put(probability, shardings(probability, mesh))['item_embedding']
    step, losses = make_train_step(Objective(net, 0.3, loss=SAMPLED_SOFTMAX, negatives=negatives), optimizer, mesh), []
    for _ in range(steps):
        state, loss = step(state, place_rows(batch, mesh, 8), SEED, EPOCH, probability)
        losses.append(float(loss))
    by_row = isinstance(optimizer, SparseTableOptimizer)
    squares = np.asarray(state.opt_state['item_embedding'])[:ITEMS + 1] if by_row else None
    return losses, net.whole(state.params), squares


@pytest.fixture(scope='module')
def on_one_device(batch):
    return after_steps(batch, 1, 1)


@pytest.mark.parametrize('data, model', [(4, 2), (1, 8)])
def test_sampled_steps_do_not_depend_on_the_mesh(batch, on_one_device, data, model):
    losses, params, squares = after_steps(batch, data, model)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    chex.assert_trees_all_close(params, on_one_device[1], rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(squares, on_one_device[2], rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize('data, model', [(1, 1), (4, 2)])
def test_an_optimizer_of_the_whole_table_gets_the_same_rows_and_zeros(batch, data, model):
    """SGD shows the rows' gradients; row-wise Adagrad's first step has their directions and its state their squares."""
    _, before = init_network(CONFIG, ITEMS, seed=0)
    _, by_sgd, _ = after_steps(batch, data, model, steps=1, optimizer=optax.sgd(1.0))
    _, by_row, squares = after_steps(batch, 1, 1, steps=1)
    gradients, moves = (before['item_embedding'] - after['item_embedding'] for after in (by_sgd, by_row))
    np.testing.assert_allclose(np.mean(gradients**2, 1), squares, rtol=1e-3, atol=1e-12)
    assert (squares == 0).any() and (squares > 1e-6).sum() > 20
    np.testing.assert_allclose(gradients, moves / 0.1 * np.sqrt(squares)[:, None], rtol=1e-2, atol=1e-6)


def test_a_step_moves_the_rows_it_reads_scores_or_draws_and_no_other(batch):
    _, params, squares = after_steps(batch, 1, 1, steps=1)
    _, before = init_network(CONFIG, ITEMS, seed=0)
    moved = {int(row) for row in np.flatnonzero((params['item_embedding'] != before['item_embedding']).any(1))}
    touched = {0, *batch.items.ravel(), *batch.targets.ravel(), *np.asarray(draw_negatives(SEED, 0, 12, ITEMS + 1))}
    assert moved <= touched and len(touched) < ITEMS + 1 and len(moved) > 20
    assert moved == {int(row) for row in np.flatnonzero(squares)}


@pytest.mark.slow
def test_no_step_makes_a_second_table(batch):
    """No temporary has the size of the table, and the table is updated in place."""
    mesh, items = device_mesh(jax.devices()[:1]), 200_000
    net, params = init_network(CONFIG, items, seed=0)
    optimizer = SparseTableOptimizer(optax.adam(1e-2), 0.1)
    state = init_state(net, params, optimizer, mesh)
    step = make_train_step(Objective(net, 0.3, loss=SAMPLED_SOFTMAX, negatives=12), optimizer, mesh)
    memory = step.lower(state, batch, SEED, EPOCH, jnp.zeros(items + 1)).compile().memory_analysis()
    table = 4 * 16 * (items + 1)
    assert memory.temp_size_in_bytes < 0.2 * table
    assert memory.alias_size_in_bytes > table
