"""Evaluation and recommendation against rankings made history by history, unpacked, in NumPy."""
import dataclasses

import jax
import numpy as np
import pytest

import ssd4rec_jax.recommend
from ssd4rec_jax.data.examples import test_examples as the_test_examples
from ssd4rec_jax.data.examples import valid_examples
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.evaluate import Ranker
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.plain import plain_hidden
from ssd4rec_jax.recommend import recommend
from ssd4rec_jax.mesh import device_mesh
from ssd4rec_jax.network import init_network
from tests.packed import pack
from tests.train.tiny import MODEL, history, tiny_dataset

ITEMS, USERS = 30, 60


@pytest.fixture(scope='module')
def dataset():
    return tiny_dataset()


@pytest.fixture(scope='module')
def network():
    """A new model whose parameters are larger than usual, so that histories matter."""
    net, params = init_network(dataclasses.replace(MODEL, num_layers=2), ITEMS, seed=3)
    rng = np.random.default_rng(4)
    return net, jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(np.float32), params)


def scores_alone(network, histories) -> np.ndarray:
    """[histories, items + 1], each history in a row of its own, by the plain algorithm; item 0 at -inf."""
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
    return [sorted(range(ITEMS + 1), key=lambda i: -row[i]).index(t) + 1 for row, t in zip(scores, targets)]


@pytest.fixture(scope='module')
def expected(network, dataset):
    return {'valid': by_hand(network, dataset, 2), 'test': by_hand(network, dataset, 1)}


@pytest.mark.parametrize('devices, model, targets_per_step', [
    (1, 1, 1024), (1, 1, 13), (8, 1, 13), (8, 2, 13), (8, 4, 13), (8, 8, 1024),
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


@pytest.mark.parametrize('exclude_seen', [False, True])
def test_recommend_is_the_top_of_that_ranking(network, dataset, monkeypatch, exclude_seen):
    monkeypatch.setattr(ssd4rec_jax.recommend, 'HISTORIES_PER_STEP', 8)  # several packed steps
    histories = [history(dataset, u) for u in range(USERS)]
    items, scores = recommend(*network, histories, k=5, exclude_seen=exclude_seen)
    expected = scores_alone(network, histories)
    for row, h in zip(expected, histories):
        if exclude_seen:
            row[h] = -np.inf
    assert items.tolist() == [sorted(range(ITEMS + 1), key=lambda i: -row[i])[:5] for row in expected]
    np.testing.assert_allclose(scores, np.sort(expected)[:, :-6:-1], rtol=1e-4, atol=1e-4)


def test_k_is_cut_to_the_catalogue_and_seen_items_come_last(network):
    seen = np.arange(3, 9)
    items, scores = recommend(*network, [seen], k=1000, exclude_seen=True)
    assert sorted(items[0, :ITEMS - 6].tolist()) == [i for i in range(1, ITEMS + 1) if i not in seen]
    assert np.isfinite(scores[0, :ITEMS - 6]).all() and (scores[0, ITEMS - 6:] == -np.inf).all()
    assert items.shape == (1, ITEMS)
