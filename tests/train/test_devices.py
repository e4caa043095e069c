"""The data-parallel step gives one device's numbers: loss, raw gradients before the optimiser, parameters."""
import functools

import chex
import jax
import numpy as np
import optax
import pytest

from ssd4rec_jax.model.config import ModelConfig
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.train_state import (
    DATA_AXIS, PartitionSpec, by_rows, data_mesh, init_network, init_state, loss_and_gradients, make_train_step,
    over_rows, train_step,
)
from tests.packed import pack

MASK_RATIO = 0.3
SEED, EPOCH = np.uint32(5), np.uint32(2)
CONFIG = ModelConfig(hidden_size=16, num_layers=2, d_state=8, headdim=8, beta=0.3, dropout_prob=0.3, dtype='float32')


@pytest.fixture(scope='module')
def network():
    return init_network(CONFIG, 40, seed=0)


@pytest.fixture(scope='module')
def batch():
    """Eight rows with unlike numbers of targets, the last one empty."""
    rng = np.random.default_rng(0)
    example, rows = 0, []
    for r in range(8):
        row = []
        for _ in range(r if r < 7 else 0):
            row.append((example, rng.integers(1, 41, rng.integers(1, 8)).tolist()))
            example += 1
        rows.append(row)
    targets = {e: int(rng.integers(1, 41)) for e in range(example)}
    return pack(rows, tokens=64, segments=8, targets=targets)


def gradients_on(network, batch, devices):
    net, params = network
    mesh = data_mesh(jax.devices()[:devices])
    body = functools.partial(loss_and_gradients, net, MASK_RATIO, False)
    mapped = jax.jit(over_rows(
        body, mesh, replicated_args=(True, False, True, True), out_specs=PartitionSpec()
    ))
    loss, count, grads = mapped(params, jax.device_put(batch, by_rows(mesh)), SEED, EPOCH)
    return float(loss), int(count), jax.tree.map(np.asarray, grads)


def assert_same_gradients(ours, theirs):
    """To float32 rounding of each array's largest entry: another device count sums in another order."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)):
        assert np.abs(b).max() > 0, path
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max(), err_msg=str(path))


@pytest.fixture(scope='module')
def on_one_device(network, batch):
    return gradients_on(network, batch, 1)


@pytest.mark.parametrize('devices', [4, 8])
def test_loss_and_raw_gradients_do_not_depend_on_the_device_count(network, batch, on_one_device, devices):
    loss, count, grads = on_one_device
    many_loss, many_count, many_grads = gradients_on(network, batch, devices)
    assert count == many_count == sum(range(7))
    assert many_loss == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(many_grads, grads)


@pytest.mark.slow
def test_dropout_and_masking_are_on_in_that_comparison(network, batch):
    net, params = network
    mesh = data_mesh(jax.devices()[:1])
    body = functools.partial(loss_and_gradients, net, MASK_RATIO, False)
    mapped = jax.jit(over_rows(body, mesh, replicated_args=(True, False, True, True), out_specs=PartitionSpec()))
    losses = {float(mapped(params, batch, SEED, np.uint32(epoch))[0]) for epoch in range(3)}
    assert len(losses) == 3


@pytest.mark.slow
def test_pmap_of_the_same_step_gives_the_same_numbers(network, batch):
    net, params = network
    optimizer = optax.adam(1e-2)
    mesh = data_mesh(jax.devices()[:4])
    step = make_train_step(net, optimizer, MASK_RATIO, mesh)
    ours, loss = step(init_state(jax.tree.map(np.array, params), optimizer, mesh), jax.device_put(batch, by_rows(mesh)), SEED, EPOCH)

    by_device = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
    body = functools.partial(train_step, net, optimizer, MASK_RATIO, False)
    mapped = jax.pmap(body, axis_name=DATA_AXIS, in_axes=(None, 0, None, None), devices=jax.devices()[:4])
    theirs, pmap_loss = mapped(init_state(jax.tree.map(np.array, params), optimizer, data_mesh(jax.devices()[:1])), by_device, SEED, EPOCH)
    chex.assert_trees_all_close(pmap_loss, np.full(4, loss), rtol=1e-6)
    for k in range(4):
        replica = jax.tree.map(lambda a, k=k: np.asarray(a[k]), theirs)
        chex.assert_trees_all_close(replica.params, jax.tree.map(np.asarray, ours.params), rtol=1e-4, atol=1e-6)
        # Adam divides a constant factor out of its update; its first moment shows it.
        moments = lambda s: jax.tree.map(np.asarray, s.opt_state[0].mu)  # noqa: E731
        assert_same_gradients(moments(replica), moments(ours))


def test_the_loss_is_the_mean_over_targets_of_each_history_alone(x64):
    """Against a loop over single unpacked histories and NumPy's softmax, without dropout or masking."""
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
    mesh = data_mesh(jax.devices()[:2])
    body = functools.partial(loss_and_gradients, net, 0.0, False)
    mapped = jax.jit(over_rows(body, mesh, replicated_args=(True, False, True, True), out_specs=PartitionSpec()))
    loss, count, _ = mapped(params, packed, SEED, EPOCH)
    assert float(loss / count) == pytest.approx(np.mean(expected), rel=1e-9)
