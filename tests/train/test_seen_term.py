"""Losses with the seen-item term and their gradients, compared with dense float64 matrices; ranks and lists with it."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.config.loss import FullSoftmax
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh, place_rows, shardings
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.train import full_softmax
from ssd4rec_jax.train.full_softmax import softmax_loss_sum
from ssd4rec_jax.train.gradients import make_gradients, make_sampled_gradients
from ssd4rec_jax.train.losses import SAMPLED_SOFTMAX, Loss, make_loss
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.sampled_softmax import draw_negatives
from tests.packed import pack
from tests.seen import added_by_hand, histories_of

pytestmark = pytest.mark.slow  # Compiling for many meshes and kills of whole runs take minutes.

ITEMS, SEED, EPOCH = 12, np.uint32(5), np.uint32(2)
CONFIG = ModelConfig(
    hidden_size=8, num_layers=1, d_state=4, headdim=4, beta=0.3, dropout_prob=0.0, dtype='float64', seen_bias=True,
)


def mesh_of(data, model=1):
    return device_mesh(jax.devices()[:data * model], model)


COSINE = dataclasses.replace(CONFIG, scores='cosine', temperature=0.3)


@pytest.fixture
def network(x64):
    return drawn_network(CONFIG)


def drawn_network(config):
    net, params = init_network(config, ITEMS, seed=0)
    rng = np.random.default_rng(1)
    return net, jax.tree.map(lambda w: jnp.asarray(w + rng.normal(size=w.shape)), params)


def batch_of(every_prefix):
    """Eight rows, one of them empty, of histories in which items come back; some targets were seen."""
    rng = np.random.default_rng(0)
    rows = [
        [(10 * r + n, rng.integers(1, ITEMS + 1, rng.integers(1, 14)).tolist()) for n in range(r % 4)] for r in range(8)
    ]
    batch = pack(rows, tokens=48, segments=4, targets={e: int(rng.integers(1, ITEMS + 1)) for e in range(80)})
    if every_prefix:
        drawn = rng.integers(1, ITEMS + 1, batch.items.shape).astype(np.int32)
        batch = batch._replace(targets=np.where(batch.segment_ids > 0, drawn, 0))
    return batch


def targets_of(batch, every_prefix):
    """(row, slot or token, items read, target) of everything that is predicted."""
    for (r, s), history in histories_of(batch).items():
        if every_prefix:
            for end in range(1, len(history) + 1):
                yield r, batch.starts[r, s] + end - 1, history[:end], batch.targets[r, batch.starts[r, s] + end - 1]
        else:
            yield r, s, history, batch.targets[r, s]


def dense_scores(net, params, batch, every_prefix, temperature=None):
    """(scores of all items for each target [n, items + 1], the targets, their rows), by dense arithmetic.

    temperature: where it is given, scores are cosines divided by it; net scores by dot products.
    """
    model, table = net.bind(params), params['item_embedding']
    read = (model.prefix_readouts if every_prefix else model.readout)(batch.items, Layout.of(batch))
    wanted = list(targets_of(batch, every_prefix))
    bias = params.get('seen', {'age': jnp.zeros(8), 'times': jnp.zeros(4)})
    row, slot = np.array([r for r, *_ in wanted]), np.array([s for _, s, *_ in wanted])
    added = added_by_hand([history for *_, history, _ in wanted], bias['age'], bias['times'], ITEMS + 1)
    read = read[row, slot]
    if temperature is not None:
        read, table = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (read, table))
        read = read / temperature
    return read @ table.T + added, np.array([t for *_, t in wanted]), row


def assert_close(ours, theirs):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * max(1, np.abs(b).max()), err_msg=str(path))


@pytest.mark.parametrize('data, model, max_scores, tile, every_prefix', [
    (1, 1, 2**27, 128, False), (1, 1, 200, 128, True), (1, 1, 2**27, 3, False), (8, 1, 2**27, 2, True),
    (2, 4, 2**27, 128, True), (1, 8, 300, 128, False),
])
def test_full_softmax(network, monkeypatch, every_prefix, data, model, max_scores, tile):
    """13 rows of the table in one piece, in chunks, for a few readouts at a time, on devices that hold a part each."""
    monkeypatch.setattr(full_softmax, 'TILE', tile)
    net, params = network
    batch = batch_of(every_prefix)

    def dense(params):
        logits, targets, _ = dense_scores(net, params, batch, every_prefix)
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1))

    expected, expected_grads = jax.jit(jax.value_and_grad(dense))(params)
    mesh = mesh_of(data, model)
    loss = Loss(functools.partial(softmax_loss_sum, max_scores=max_scores))
    split = net.split(params, mesh)
    of = jax.jit(make_gradients(Objective(net, 0.0, every_prefix, loss), mesh, split))
    value, _, grads = of(jax.device_put(split, shardings(split, mesh)), place_rows(batch, mesh, 8), SEED, EPOCH)
    assert float(value) == pytest.approx(float(expected), rel=1e-11)
    grads['item_embedding'] = grads['item_embedding'][:ITEMS + 1]
    assert_close(grads, expected_grads)
    assert np.abs(expected_grads['seen']['age'][:5]).min() > 1e-3


@pytest.mark.parametrize('data, model', [(1, 1), (2, 4)])
def test_full_softmax_of_cosines(x64, data, model):
    net, params = drawn_network(CONFIG)
    batch, mesh = batch_of(False), mesh_of(data, model)

    def dense(params):
        logits, targets, _ = dense_scores(net, params, batch, False, temperature=0.3)
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1))

    expected, expected_grads = jax.jit(jax.value_and_grad(dense))(params)
    cosine, _ = init_network(COSINE, ITEMS, seed=0)
    split = cosine.split(params, mesh)
    of = jax.jit(make_gradients(Objective(cosine, 0.0), mesh, split))
    value, _, grads = of(jax.device_put(split, shardings(split, mesh)), place_rows(batch, mesh, 8), SEED, EPOCH)
    assert float(value) == pytest.approx(float(expected), rel=1e-9)
    grads['item_embedding'] = grads['item_embedding'][:ITEMS + 1]
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * max(1, np.abs(b).max()), err_msg=str(path))


@pytest.mark.parametrize('data, model, every_prefix', [(1, 1, True), (4, 2, False)])
def test_sampled_softmax(network, every_prefix, data, model):
    net, params = network
    batch, negatives = batch_of(every_prefix), 6
    probability = np.random.default_rng(3).dirichlet(np.ones(ITEMS + 1))
    drawn = np.asarray(draw_negatives(SEED, 7, negatives, ITEMS + 1))

    def dense(params):
        """One target and one candidate at a time."""
        logits, targets, rows = dense_scores(net, params, batch, every_prefix)
        weight = np.zeros((len(targets), ITEMS + 1))
        for own, target, r in zip(weight, targets, rows, strict=True):
            of_row = targets[rows == r]
            for candidate in [*drawn, *of_row]:
                own[candidate] += 1 / (negatives / (ITEMS + 1) + (len(of_row) - 1) * probability[candidate])
            own[target] = 1
        own = jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return jnp.sum(jnp.log(jnp.sum(weight * jnp.exp(logits), axis=1)) - own)

    expected, expected_grads = jax.jit(jax.value_and_grad(dense))(params)
    mesh = mesh_of(data, model)
    split = net.split(params, mesh)
    split = jax.device_put(split, shardings(split, mesh))
    chance = {'item_embedding': net.shard(mesh).pad(jnp.asarray(probability))}
    chance = jax.device_put(chance, shardings(chance, mesh))['item_embedding']
    objective = Objective(net, 0.0, every_prefix, SAMPLED_SOFTMAX, negatives)
    of = jax.jit(make_sampled_gradients(objective, mesh, split))
    value, _, grads, rows = of(split, chance, place_rows(batch, mesh, 8), SEED, EPOCH, np.int32(7))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)  # The rows of the table are fetched in float32.
    table = np.zeros((100, CONFIG.hidden_size))
    np.add.at(table, np.minimum(rows.ids, 99), rows.gradients)
    theirs = {**expected_grads, 'item_embedding': np.asarray(expected_grads['item_embedding'])}
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path({**grads, 'item_embedding': table[:ITEMS + 1]}), jax.tree.leaves(theirs),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()), err_msg=str(path))


@pytest.mark.parametrize('data, model', [(1, 1), (2, 4)])
def test_ranks_and_lists(network, data, model):
    net, params = network
    rng = np.random.default_rng(4)
    histories = [rng.integers(1, ITEMS + 1, n).astype(np.int32) for n in (1, 9, 3, 20, 2, 5)]
    targets = rng.integers(1, ITEMS + 1, 6).astype(np.int32)
    stop = np.cumsum([len(h) for h in histories])
    examples = ExampleIndex(
        items=np.concatenate(histories), start=stop - [len(h) for h in histories], stop=stop, target=targets, cut=0
    )
    batch = pack([list(enumerate(map(np.ndarray.tolist, histories)))], tokens=40, segments=6)
    logits, _, _ = dense_scores(net, params, batch, False)
    order = [sorted(range(1, ITEMS + 1), key=lambda item, row=row: (-row[item], item)) for row in np.asarray(logits)]
    mesh = mesh_of(data, model)
    ranker = Ranker(net, mesh, examples, targets_per_step=4, tokens_per_row=32)
    expected = [own.index(target) + 1 for own, target in zip(order, targets.tolist(), strict=True)]
    assert ranker.ranks(params, examples).tolist() == expected
    items, scores = TopItems(net, mesh, params)(histories, k=5)
    assert items.tolist() == [own[:5] for own in order]
    np.testing.assert_allclose(scores, np.take_along_axis(np.asarray(logits), items, 1), rtol=1e-6)
    picked = TopItems(net, mesh, params).scores(histories, np.array([7, 2, ITEMS]))
    np.testing.assert_allclose(picked, np.asarray(logits)[:, [7, 2, ITEMS]], rtol=1e-6)
    without = dense_scores(net, {**params, 'seen': jax.tree.map(jnp.zeros_like, params['seen'])}, batch, False)[0]
    assert np.abs(np.asarray(logits - without)).max() > 0.1


@pytest.mark.parametrize('data, model, seen_bias', [(1, 1, True), (2, 4, False)])
def test_label_smoothing(x64, data, model, seen_bias):
    """Cross-entropy with a target of 0.9 + 0.1 / 13 and 0.1 / 13 for all others, on one device and on parts."""
    net, params = drawn_network(dataclasses.replace(CONFIG, seen_bias=seen_bias))
    batch, mesh = batch_of(False), mesh_of(data, model)

    def dense(params):
        logits, targets, _ = dense_scores(net, params, batch, False)
        smoothed = 0.9 * jax.nn.one_hot(targets, ITEMS + 1) + 0.1 / (ITEMS + 1)
        return -jnp.sum(smoothed * jax.nn.log_softmax(logits))

    expected, expected_grads = jax.jit(jax.value_and_grad(dense))(params)
    loss = make_loss(TrainConfig(loss='full'), FullSoftmax(label_smoothing=0.1), ITEMS)
    split = net.split(params, mesh)
    of = jax.jit(make_gradients(Objective(net, 0.0, False, loss), mesh, split))
    value, _, grads = of(jax.device_put(split, shardings(split, mesh)), place_rows(batch, mesh, 8), SEED, EPOCH)
    assert float(value) == pytest.approx(float(expected), rel=1e-11)
    assert not np.any(grads['item_embedding'][ITEMS + 1:])
    grads['item_embedding'] = grads['item_embedding'][:ITEMS + 1]
    assert_close(grads, expected_grads)
