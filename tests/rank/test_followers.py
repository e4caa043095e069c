"""Ranking with the follower term compared with scores that a loop adds to."""
import dataclasses

import jax
import numpy as np
import pytest

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.examples import test_examples as the_test_examples
from ssd4rec_jax.data.followers import count_followers
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.run.saved_run import load_run
from tests.tiny import DATA, MODEL, TRAIN, history, tiny_dataset, trainer_in

WEIGHT = 0.7
ITEMS = np.arange(1, 31)


@pytest.fixture(scope='module')
def dataset():
    return tiny_dataset()


@pytest.fixture(scope='module')
def network():
    """With a seen-item term, whose biases are not zero."""
    return drawn(seen_bias=True)


def drawn(seen_bias):
    net, params = init_network(dataclasses.replace(MODEL, seen_bias=seen_bias), 30, seed=3)
    rng = np.random.default_rng(4)
    return net, jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(np.float32), params)


def added(dataset, histories, has_seen):
    """float64 [histories, items]: what is added; with a seen-item term also for items that the history holds."""
    followers, found = count_followers(dataset).times(WEIGHT), np.zeros((len(histories), len(ITEMS)))
    for own, read in zip(found, histories, strict=True):
        for age, item in enumerate(read[::-1][:8].tolist()):
            for after, strength in zip(followers.items[item], followers.strength[item], strict=True):
                if after and (has_seen or after not in read):
                    own[after - 1] += 0.6 ** age * strength
    return found


@pytest.mark.parametrize('devices, model, seen_bias', [(8, 2, False), (8, 2, True)])
def test_scores_and_ranks_have_the_term_on_any_mesh(dataset, devices, model, seen_bias):
    net, params = drawn(seen_bias)
    mesh = device_mesh(jax.devices()[:devices], model)
    histories = [history(dataset, user, 1) for user in range(60)]
    plain = TopItems(net, mesh, params).scores(histories, ITEMS)
    followers = count_followers(dataset).times(WEIGHT)
    # With rows of 64 tokens, the 60 histories need several packed steps.
    scores = TopItems(net, mesh, params, tokens_per_row=64, followers=followers).scores(histories, ITEMS)
    term = added(dataset, histories, seen_bias)
    np.testing.assert_allclose(scores, plain + term, rtol=1e-4, atol=1e-4)
    assert np.mean(term > 0) > 0.3 and np.ptp(term) > 2
    targets = np.array([history(dataset, user)[-1] for user in range(60)])
    ranker = Ranker(
        net, mesh, the_test_examples(dataset), targets_per_step=13, tokens_per_row=128, followers=followers
    )
    own = np.take_along_axis(scores, targets[:, None] - 1, axis=1)
    expected = 1 + np.sum(scores > own, axis=1)
    assert ranker.ranks(params, the_test_examples(dataset)).tolist() == expected.tolist()
    assert np.any(expected != 1 + np.sum(plain > np.take_along_axis(plain, targets[:, None] - 1, axis=1), axis=1))


def test_an_item_of_no_row_has_no_followers(network, dataset):
    """Items that were added after training."""
    net, params = network
    followers = count_followers(dataset).times(WEIGHT)
    fewer = followers._replace(items=followers.items[:20], strength=followers.strength[:20])
    mesh = device_mesh(jax.devices()[:1])
    scores = [TopItems(net, mesh, params, followers=f).scores([np.array([25, 29])], ITEMS) for f in (fewer, None)]
    np.testing.assert_array_equal(*scores)


def test_a_saved_model_keeps_the_term_also_without_histories(network, dataset, tmp_path):
    net, params = network
    config = RunConfig('interactions', dataclasses.replace(MODEL, seen_bias=True, follower_weight=WEIGHT), DATA, TRAIN)
    followers = count_followers(dataset).times(WEIGHT)
    save_model(
        tmp_path / 'm', config, dataset, jax.tree.map(np.asarray, params), step=1, best_epoch=1, histories=False,
        followers=followers,
    )
    saved = load_run(tmp_path / 'm')
    for ours, theirs in zip(saved.followers, followers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_training_ranks_with_it_and_does_not_learn_from_it(dataset, tmp_path):
    with_term, train = dataclasses.replace(MODEL, follower_weight=3.0), dataclasses.replace(TRAIN, max_epochs=1)
    runs = {}
    for name, model in (('with', with_term), ('without', MODEL)):
        trainer = trainer_in(tmp_path / name, model=model, train=train, dataset=dataset)
        runs[name] = trainer.run(), trainer.program.network.whole(trainer.state.params)
    (_, params), (_, plain) = runs['with'], runs['without']
    assert runs['with'][0]['valid']['NDCG@20'] != runs['without'][0]['valid']['NDCG@20']
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert load_run(tmp_path / 'with' / 'model').followers is not None
