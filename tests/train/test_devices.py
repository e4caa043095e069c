"""A step gives the same numbers on any mesh: the loss, the gradients before the optimiser, and the parameters."""
import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.model.scores import map_scores
from ssd4rec_jax.parallel.mesh import (
    DATA_AXIS,
    MODEL_AXIS,
    PartitionSpec,
    device_mesh,
    over_devices,
    place_rows,
    specs,
    token_multiple,
)
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.rank.metrics import ranks
from ssd4rec_jax.train.full_softmax import softmax_loss_sum
from ssd4rec_jax.train.gradients import loss_and_gradients, make_gradients
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.state import create_state, init_state, make_train_step, update
from tests.packed import pack
from tests.timed import gaps

pytestmark = pytest.mark.slow  # Compiling for many meshes and kills of whole runs take minutes.

MASK_RATIO = 0.3
ITEMS = 40
SEED, EPOCH = np.uint32(5), np.uint32(2)
CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, d_state=8, headdim=8, beta=0.3, dropout_prob=0.3, time='decay_and_dt',
    dtype='float32',
)


@pytest.fixture(scope='module')
def network():
    return init_network(CONFIG, ITEMS, seed=0)


@pytest.fixture(scope='module')
def batch():
    """Eight rows with different numbers of targets; the last row is empty."""
    rng = np.random.default_rng(0)
    example, rows = 0, []
    for r in range(8):
        row = []
        for _ in range(r if r < 7 else 0):
            row.append((example, rng.integers(1, 41, rng.integers(1, 8)).tolist()))
            example += 1
        rows.append(row)
    targets = {e: int(rng.integers(1, 41)) for e in range(example)}
    return pack(rows, tokens=64, segments=8, targets=targets, gaps=gaps)


def mesh_of(data, model=1):
    return device_mesh(jax.devices()[:data * model], model)


def gradients_on(network, batch, mesh, mask_ratio=MASK_RATIO, epochs=(EPOCH,)):
    """(loss, count, gradients) of each epoch."""
    net, params = network
    params, batch = net.split(params, mesh), place_rows(batch, mesh, len(batch.items))
    mapped = jax.jit(make_gradients(Objective(net, mask_ratio), mesh, params))
    for epoch in epochs:
        loss, count, grads = mapped(params, batch, SEED, epoch)
        yield float(loss), int(count), jax.tree.map(np.asarray, grads)


def assert_same_gradients(ours, theirs):
    """Equal up to float32 rounding of each array's largest entry, since the order of sums depends on the mesh."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(b).max() > 0, path
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max(), err_msg=str(path))


@pytest.fixture(scope='module')
def on_one_device(network, batch):
    return list(gradients_on(network, batch, mesh_of(1), epochs=(EPOCH, EPOCH + 1)))


@pytest.mark.parametrize('data, model', [(2, 4), (1, 3)])
def test_loss_and_raw_gradients_do_not_depend_on_the_mesh(network, batch, on_one_device, data, model):
    """Neither 4 nor 3 divides the 41 rows of the table."""
    if data * model == 3:
        batch = jax.tree.map(lambda a: np.concatenate([a, np.zeros_like(a[:1])]), batch)  # Three devices get nine rows.
    loss, count, grads = on_one_device[0]
    ((many_loss, many_count, many_grads),) = gradients_on(network, batch, mesh_of(data, model))
    assert count == many_count == sum(range(7))
    assert many_loss == pytest.approx(loss, rel=1e-5)
    table = many_grads['item_embedding']
    assert len(table) == -(-41 // model) * model and not table[41:].any()
    assert_same_gradients({**many_grads, 'item_embedding': table[:41]}, grads)


def test_raw_gradients_are_those_of_the_plain_network_and_one_softmax(x64, batch, plain):
    """Compared with the plain algorithm on one device, which knows no mesh; the table has 41 rows."""
    network, plain_loss, plain_grads = plain
    ((loss, _, grads),) = gradients_on(network, batch, mesh_of(2, 4), mask_ratio=0.0)
    assert loss == pytest.approx(plain_loss, rel=1e-10)
    grads['item_embedding'] = grads['item_embedding'][:41]
    named = jax.tree_util.tree_leaves_with_path(grads)
    for (path, ours), theirs in zip(named, jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max(), err_msg=str(path))


@pytest.fixture(scope='module')
def plain(batch):
    """(network, loss, gradients) of plain_readout and a whole softmax by jax.grad, in float64 without dropout."""
    with jax.enable_x64(True):
        return plain_gradients(batch)


def plain_gradients(batch):
    config = dataclasses.replace(CONFIG, dropout_prob=0.0, norm_embedding=True, dtype='float64')
    net, params = init_network(config, ITEMS, seed=0)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape), params)

    def loss_of(params):
        scores = plain_readout(net.bind(params), batch.items, Layout.of(batch)) @ params['item_embedding'].T
        of_target = jnp.take_along_axis(jax.nn.log_softmax(scores), batch.targets[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(batch.targets > 0, of_target, 0.0))

    return (net, params), *jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss_of))(params))


@pytest.mark.parametrize('shards, max_scores', [(8, 2**20), (4, 8 * 4 * 3), (8, 8 * 8)])
def test_vocabulary_parallel_loss_of_few_items_and_in_chunks(x64, shards, max_scores):
    """13 items on 8 devices, the last of which holds only padding; compared with the whole softmax on one device."""
    rng = np.random.default_rng(0)
    readout, table = rng.normal(size=(8 * shards, 5)), rng.normal(size=(13, 5))
    targets = rng.integers(1, 13, 8 * shards)
    real = rng.random(8 * shards) < 0.7
    shard, mesh = TableShard(13, shards), mesh_of(1, shards)

    def body(readout, part, targets, real):
        loss, grads = jax.value_and_grad(
            lambda *args: softmax_loss_sum(*args, targets, real, shard=shard, max_scores=max_scores), (0, 1)
        )(readout, part)
        return jax.lax.psum(loss, MODEL_AXIS), grads

    rows = PartitionSpec(MODEL_AXIS)
    loss, (dreadout, dtable) = jax.jit(over_devices(body, mesh, (rows,) * 4, (PartitionSpec(), (rows, rows))))(
        readout, shard.pad(table), targets, real
    )
    expected, (dreadout_whole, dtable_whole) = jax.value_and_grad(
        lambda *args: softmax_loss_sum(*args, targets, real), (0, 1)
    )(readout, table)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(dreadout, dreadout_whole, atol=1e-12)
    np.testing.assert_allclose(dtable[:13], dtable_whole, atol=1e-12)
    assert not np.any(dtable[13:])


@pytest.mark.parametrize('rows_at_a_time', [3, 16])
def test_ranks_of_a_split_table_a_few_rows_at_a_time(rows_at_a_time):
    """13 items on 8 devices and 16 readouts, so that 3 rows at a time leave one row for the last part."""
    rng = np.random.default_rng(0)
    readout, table = rng.integers(-2, 3, (16, 5)).astype(np.float32), rng.integers(-2, 3, (13, 5)).astype(np.float32)
    targets = rng.integers(1, 13, 16)
    shard, mesh = TableShard(13, 8), mesh_of(1, 8)

    def body(readout, part, targets):
        readouts, targets = shard.gather(readout), shard.gather(targets)
        found = map_scores(
            functools.partial(ranks, shard=shard), readouts, part, targets, max_scores=shard.held * rows_at_a_time
        )
        return tuple(shard.own(a) for a in found)

    rows = PartitionSpec(MODEL_AXIS)
    rank, finite = jax.jit(over_devices(body, mesh, (rows,) * 3, (rows, rows)))(readout, shard.pad(table), targets)
    scores = readout @ table.T
    in_order = [sorted(range(1, 13), key=lambda item: (-row[item], item)) for row in scores]
    expected = [order.index(target) + 1 for order, target in zip(in_order, targets, strict=True)]
    assert rank.tolist() == expected and finite.all() and len(set(expected)) > 5


def test_dropout_and_masking_are_on_in_that_comparison(on_one_device):
    (first, *_), (second, *_) = on_one_device
    assert first != second


@pytest.fixture(scope='module')
def after_two_steps(network, batch):
    """The state after two steps on a mesh, with clipping by the global norm, which no device can compute alone."""
    net, params = network
    optimizer = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(1e-2))

    @functools.cache
    def on(data, model):
        mesh = mesh_of(data, model)
        step = make_train_step(Objective(net, MASK_RATIO), optimizer, mesh)
        state = init_state(net, jax.tree.map(np.array, params), optimizer, mesh)
        for epoch in range(2):
            state, _ = step(state, place_rows(batch, mesh, 8), SEED, np.uint32(epoch))
        return state

    return on


@pytest.mark.parametrize('data, model', [(4, 2), (1, 8)])
def test_steps_with_a_split_table_give_one_device_s_parameters(after_two_steps, data, model):
    one, many = after_two_steps(1, 1), after_two_steps(data, model)
    for leaf, spec in zip(jax.tree.leaves(many), jax.tree.leaves(specs(many)), strict=True):
        assert leaf.sharding.spec == spec
    table = many.params['item_embedding']
    assert table.addressable_shards[0].data.shape == (-(-41 // model), 16)
    many = many._replace(params={**many.params, 'item_embedding': table[:41]})
    chex.assert_trees_all_close(*(jax.tree.map(np.asarray, s.params) for s in (many, one)), rtol=1e-4, atol=2e-5)


def test_a_state_made_where_it_belongs_is_the_one_made_at_once(network):
    mesh, optimizer = mesh_of(2, 4), optax.adam(1e-2)
    _, state = create_state(CONFIG, ITEMS, 0, optimizer, mesh)
    expected = init_state(network[0], jax.tree.map(np.array, network[1]), optimizer, mesh)
    chex.assert_trees_all_close(*(jax.tree.map(np.asarray, s) for s in (state, expected)), rtol=1e-6, atol=1e-7)
    assert [a.sharding for a in jax.tree.leaves(state)] == [a.sharding for a in jax.tree.leaves(expected)]


@pytest.mark.slow
def test_pmap_of_the_same_step_gives_the_same_numbers(network, batch):
    net, params = network
    optimizer, mesh = optax.adam(1e-2), mesh_of(4)
    step = make_train_step(Objective(net, MASK_RATIO), optimizer, mesh)
    state = init_state(net, jax.tree.map(np.array, params), optimizer, mesh)
    ours, loss = step(state, place_rows(batch, mesh, 8), SEED, EPOCH)

    def body(state, batch):
        objective, shard = Objective(net, MASK_RATIO), TableShard(ITEMS + 1)
        loss, count, grads = loss_and_gradients(objective, shard, state.params, batch, SEED, EPOCH, axes=(DATA_AXIS,))
        return update(optimizer, state, loss, count, grads), loss / count

    by_device = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
    mapped = jax.pmap(body, axis_name=DATA_AXIS, in_axes=(None, 0), devices=jax.devices()[:4])
    theirs, pmap_loss = mapped(init_state(net, jax.tree.map(np.array, params), optimizer, mesh_of(1)), by_device)
    chex.assert_trees_all_close(pmap_loss, np.full(4, loss), rtol=1e-6)
    for k in range(4):
        replica = jax.tree.map(lambda a, k=k: np.asarray(a[k]), theirs)
        chex.assert_trees_all_close(replica.params, jax.tree.map(np.asarray, ours.params), rtol=1e-4, atol=1e-6)
        # A constant factor cancels in the updates of Adam, but not in its first moment.
        moments = [jax.tree.map(np.asarray, s.opt_state[0].mu) for s in (replica, ours)]
        assert_same_gradients(*moments)


def test_the_loss_is_the_mean_over_targets_of_each_history_alone(x64):
    """Compared with a loop over single unpacked histories and NumPy's softmax, without dropout or masking."""
    config = ModelConfig(hidden_size=16, num_layers=1, d_state=8, headdim=8, dropout_prob=0.0, dtype='float64')
    net, params = init_network(config, 40, seed=0)
    histories = [[3, 4], [5], [6, 7, 8, 9, 10], [1, 2, 3]]
    targets = {0: 7, 1: 40, 2: 1, 3: 3}
    table = np.asarray(params['item_embedding'])
    expected = []
    for e, items in enumerate(histories):
        one = pack([[(e, items)]], tokens=len(items), segments=1)
        logits = table @ np.asarray(net.bind(params).readout(one.items, Layout.of(one)))[0, 0]
        expected.append(np.log(np.exp(logits).sum()) - logits[targets[e]])
    packed = pack([[(e, histories[e]) for e in (2, 0)], [(e, histories[e]) for e in (1, 3)]], 9, 4, targets)
    ((loss, count, _),) = gradients_on((net, params), packed, mesh_of(2), mask_ratio=0.0)
    assert loss / count == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize('platform, expected', [('cpu', 16), ('tpu', 16), ('gpu', 64)])
def test_rows_are_a_multiple_of_a_gpus_chunk_on_gpus_alone(platform, expected):
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    assert token_multiple(mesh) == expected
