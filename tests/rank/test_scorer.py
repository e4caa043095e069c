"""Evaluation and recommendation compared with rankings in NumPy, made from one unpacked history at a time."""
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssd4rec_jax.data.examples import test_examples as the_test_examples
from ssd4rec_jax.data.examples import valid_examples
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.model.plain import plain_hidden
from ssd4rec_jax.model.scores import MAX_SCORES, scores_at_once
from ssd4rec_jax.parallel.mesh import AXES, MODEL_AXIS, device_mesh, over_devices
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.rank.recommend import TopItems, TopK
from tests.packed import pack
from tests.tiny import MODEL, history, tiny_dataset

ITEMS, USERS = 30, 60


@pytest.mark.parametrize('platform, processes, devices, share', [
    ('cpu', 1, 1, 1), ('cpu', 1, 4, 4), ('cpu', 2, 4, 2), ('tpu', 2, 8, 1), ('gpu', 1, 4, 1),
])
def test_the_cpu_devices_of_a_process_share_the_memory_for_scores(platform, processes, devices, share):
    each = [SimpleNamespace(platform=platform, process_index=n % processes) for n in range(devices)]
    mesh = SimpleNamespace(devices=np.array(each).reshape(1, devices), size=devices)
    assert scores_at_once(mesh) == MAX_SCORES // share


@pytest.fixture(scope='module')
def dataset():
    return tiny_dataset()


@pytest.fixture(scope='module')
def network():
    """A new model with larger parameters than usual, so that the history matters."""
    net, params = init_network(dataclasses.replace(MODEL, num_layers=2), ITEMS, seed=3)
    rng = np.random.default_rng(4)
    return net, jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(np.float32), params)


def scores_alone(network, histories) -> np.ndarray:
    """The scores [histories, items + 1] by the plain algorithm, with each history in its own row and item 0 at -inf."""
    net, params = network
    batch = pack([[(e, list(h))] for e, h in enumerate(histories)], tokens=16, segments=1)
    hidden = np.asarray(jax.jit(lambda p: plain_hidden(net.bind(p), batch.items, Layout.of(batch)))(params))
    ends = np.array([len(h) - 1 for h in histories])
    scores = hidden[np.arange(len(ends)), ends].astype(np.float64) @ np.asarray(params['item_embedding'], np.float64).T
    scores[:, 0] = -np.inf
    return scores


def by_hand(network, dataset, held_out) -> list[int]:
    scores = scores_alone(network, [history(dataset, user, held_out) for user in range(USERS)])
    targets = [history(dataset, user)[-held_out] for user in range(USERS)]
    orders = [sorted(range(ITEMS + 1), key=lambda i: -row[i]) for row in scores]
    return [order.index(target) + 1 for order, target in zip(orders, targets, strict=True)]


@pytest.fixture(scope='module')
def expected(network, dataset):
    return {'valid': by_hand(network, dataset, 2), 'test': by_hand(network, dataset, 1)}


@pytest.mark.parametrize('devices, model, targets_per_step', [
    (1, 1, 13), (8, 2, 13), (8, 8, 1024),
])
def test_every_user_is_ranked_once_however_they_are_packed(
    network, dataset, expected, devices, model, targets_per_step
):
    net, params = network
    ranker = Ranker(
        net, device_mesh(jax.devices()[:devices], model), the_test_examples(dataset), targets_per_step=targets_per_step,
        tokens_per_row=128,
    )
    assert ranker.ranks(params, the_test_examples(dataset)).tolist() == expected['test']
    assert ranker.ranks(params, valid_examples(dataset)).tolist() == expected['valid']
    ranks = np.array(expected['valid'])
    metrics = ranker.metrics(params, valid_examples(dataset))
    assert metrics['HR@10'] == np.mean(ranks <= 10)
    assert metrics['NDCG@20'] == pytest.approx(sum(1 / np.log2(r + 1) for r in ranks if r <= 20) / USERS)


@pytest.mark.parametrize('devices, model', [pytest.param(1, 1, marks=pytest.mark.slow), (8, 2)])
def test_excluded_items_are_left_out_and_an_excluded_target_is_not_found(network, dataset, devices, model):
    """Every history is excluded, and of every fifth user the target too."""
    net, params = network
    histories = [history(dataset, user, 1) for user in range(USERS)]
    exclude = [history(dataset, u) if u % 5 == 0 else h for u, h in enumerate(histories)]
    expected, lists = [], []
    for row, own, user in zip(scores_alone(network, histories), exclude, range(USERS), strict=True):
        row[own] = -np.inf
        target = history(dataset, user)[-1]
        order = sorted(set(range(1, ITEMS + 1)) - set(own.tolist()), key=lambda i: -row[i])
        lists.append((order + [0] * ITEMS)[:ITEMS])
        expected.append(0 if target in own else order.index(target) + 1)
    ranker = Ranker(
        net, device_mesh(jax.devices()[:devices], model), the_test_examples(dataset), targets_per_step=13,
        tokens_per_row=128,
    )
    assert ranker.ranks(params, the_test_examples(dataset), exclude=exclude).tolist() == expected
    ranks, found = ranker.ranks_and_lists(params, the_test_examples(dataset), k=10 * ITEMS, exclude=exclude)
    assert ranks.tolist() == expected and found.tolist() == lists
    assert 12 <= expected.count(0) < 30 and max(expected) > 15


def test_the_expected_ranks_are_not_trivial(expected):
    for ranks in expected.values():
        assert len(set(ranks)) > 15 and min(ranks) >= 1 and max(ranks) <= ITEMS


def test_scores_that_are_not_finite_are_an_error(network, dataset):
    net, params = network
    table = np.array(params['item_embedding'])
    table[7, 0] = np.inf
    ranker = Ranker(
        net, device_mesh(jax.devices()[:1]), the_test_examples(dataset), targets_per_step=1024, tokens_per_row=128
    )
    with pytest.raises(TrainingError, match='not finite .user number'):
        ranker.ranks(params | {'item_embedding': table}, the_test_examples(dataset))


@pytest.mark.parametrize('devices, model, exclude_seen', [
    pytest.param(1, 1, False, marks=pytest.mark.slow), (8, 2, True), pytest.param(8, 8, True, marks=pytest.mark.slow),
])
def test_recommend_is_the_top_of_that_ranking(network, dataset, devices, model, exclude_seen):
    net, params = network
    histories = [history(dataset, u) for u in range(USERS)]
    # With rows of 64 tokens, the 60 histories need several packed steps.
    top = TopItems(net, device_mesh(jax.devices()[:devices], model), params, tokens_per_row=64)
    items, scores = top(histories, k=5, exclude=histories if exclude_seen else None)
    expected = scores_alone(network, histories)
    for row, h in zip(expected, histories, strict=True):
        if exclude_seen:
            row[h] = -np.inf
    assert items.tolist() == [sorted(range(ITEMS + 1), key=lambda i: -row[i])[:5] for row in expected]
    np.testing.assert_allclose(scores, np.sort(expected)[:, :-6:-1], rtol=1e-4, atol=1e-4)


def test_k_is_cut_to_the_catalogue_and_seen_items_come_last(network):
    seen = np.arange(3, 9)
    items, scores = TopItems(network[0], device_mesh(jax.devices()[:1]), network[1])([seen], k=1000, exclude=[seen])
    assert sorted(items[0, :ITEMS - 6].tolist()) == [i for i in range(1, ITEMS + 1) if i not in seen]
    assert np.isfinite(scores[0, :ITEMS - 6]).all() and (scores[0, ITEMS - 6:] == -np.inf).all()
    assert items.shape == (1, ITEMS)


@pytest.mark.parametrize('model', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('k', [1, 4, 9, 30])
def test_top_k_of_whole_numbers_breaks_ties_by_lower_id_on_any_split(model, k):
    """Readouts and table are small whole numbers: scores are exact in any order of sums, and many are equal."""
    rng = np.random.default_rng(model)
    rows, items = 24, 30  # No number of shards but 1 divides the 31 rows of the table.
    readout, table = rng.integers(-2, 3, (rows, 4)), rng.integers(-2, 3, (items + 1, 4))
    excluded = rng.integers(0, items + 1, (rows, 3))
    scores = (readout @ table.T).astype(float)
    scores[:, 0] = -np.inf
    scores[np.arange(rows)[:, None], excluded] = -np.inf
    expected = [sorted(range(1, items + 1), key=lambda i: (-row[i], i))[:k] for row in scores]
    mesh, shard = device_mesh(jax.devices()[:model], model), TableShard(items + 1, model)

    def body(readout, part, excluded):
        scores = jnp.einsum('nd,vd->nv', shard.gather(readout), part)
        best, values, finite = TopK(k)(scores, shard.gather(excluded), shard=shard)
        return shard.own(best), shard.own(values), shard.own(finite)

    by_rows, by_item = PartitionSpec(AXES), PartitionSpec(MODEL_AXIS)
    mapped = jax.jit(over_devices(body, mesh, (by_rows, by_item, by_rows), by_rows))
    best, values, finite = mapped(
        readout.astype(np.float32), shard.pad(jnp.asarray(table, jnp.float32)), excluded.astype(np.int32)
    )
    np.testing.assert_array_equal(values, np.take_along_axis(scores, np.asarray(expected), axis=1))
    ranked = np.isfinite(values)  # Excluded items come last, in any order.
    assert np.array_equal(np.where(ranked, best, 0), np.where(ranked, expected, 0)) and np.all(finite)


def test_calls_of_one_size_class_share_a_compiled_program(network, dataset):
    top = TopItems(network[0], device_mesh(jax.devices()[:1]), network[1])
    histories = [history(dataset, u) for u in range(12)]
    for count, k in ((3, 5), (4, 7), (3, 8)):
        top(histories[:count], k=k)
    assert len(top._scorer._compiled) == 1


@pytest.mark.slow
def test_items_that_are_not_allowed_come_last_on_a_split_table_too(network, dataset):
    allowed = np.zeros(ITEMS + 1, bool)
    allowed[[2, 5, 9, 30]] = True
    histories = [history(dataset, u) for u in range(9)]
    expected = [sorted((2, 5, 9, 30), key=lambda i: -row[i]) for row in scores_alone(network, histories)]
    for devices in (1, 4):
        top = TopItems(network[0], device_mesh(jax.devices()[:devices], devices), network[1])
        items, scores = top(histories, k=6, allowed=allowed)
        assert items[:, :4].tolist() == expected and (scores[:, 4:] == -np.inf).all()


@pytest.mark.parametrize('devices, model', [(1, 1), (8, 2)])
def test_vectors_are_the_readouts_whose_products_are_the_scores(network, dataset, devices, model):
    histories = [history(dataset, u) for u in range(20)]
    top = TopItems(network[0], device_mesh(jax.devices()[:devices], model), network[1], tokens_per_row=64)
    scores = top.vectors(histories) @ np.asarray(network[1]['item_embedding']).T
    np.testing.assert_allclose(scores[:, 1:], scores_alone(network, histories)[:, 1:], rtol=1e-4, atol=1e-4)


def test_the_newest_items_alone_are_read_and_the_whole_history_can_be_excluded(network, dataset):
    """max_history cuts what the network reads, not what is excluded."""
    histories = [history(dataset, u) for u in range(USERS)]
    top = TopItems(network[0], device_mesh(jax.devices()[:1]), network[1], max_history=3)
    items, _ = top(histories, k=5, exclude=histories)
    expected = scores_alone(network, [h[-3:] for h in histories])
    for row, h in zip(expected, histories, strict=True):
        row[h] = -np.inf
    assert items.tolist() == [sorted(range(ITEMS + 1), key=lambda i: -row[i])[:5] for row in expected]
