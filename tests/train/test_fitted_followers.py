"""The weight of followers, chosen by validation, against scores that are ranked one by one."""
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from ssd4rec_jax.data.dataset import save_dataset
from ssd4rec_jax.data.examples import valid_examples
from ssd4rec_jax.data.followers import count_followers
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.evaluation import Evaluator
from ssd4rec_jax.rank.metrics import ranking_metrics
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import load_run, write_config
from ssd4rec_jax.train import fitted_followers
from ssd4rec_jax.train.final import final_config
from ssd4rec_jax.train.fitted_followers import WEIGHTS, fitted_weight
from tests.tiny import MODEL, TRAIN, history, tiny_dataset, trainer_in


def ndcg(scores, targets):
    ranks = 1 + np.sum(scores > np.take_along_axis(scores, targets[:, None] - 1, axis=1), axis=1)
    return np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks])


def test_it_is_the_best_of_those_tried_on_validation_targets(monkeypatch):
    monkeypatch.setattr(fitted_followers, 'AT_MOST', 20)
    dataset, mesh = tiny_dataset(), device_mesh(jax.devices()[:1])
    net, params = init_network(dataclasses.replace(MODEL, seen_bias=True), 30, seed=3)
    counted, examples = count_followers(dataset), valid_examples(dataset)
    ranker = Ranker(net, mesh, examples, targets_per_step=13, tokens_per_row=128)
    weight, chosen, found = fitted_weight(ranker, params, examples, counted, 0.7)

    users = np.linspace(0, 59, 20).astype(int)
    histories = [history(dataset, user, 2) for user in users]
    targets = np.array([history(dataset, user, 1)[-1] for user in users])
    plain = TopItems(net, mesh, params).scores(histories, np.arange(1, 31))
    term = TopItems(net, mesh, params, followers=counted).scores(histories, np.arange(1, 31)) - plain
    expected = {tried: ndcg(plain + tried * term, targets) for tried in sorted({*WEIGHTS, 0.7})}
    assert found == pytest.approx(expected) and len(set(found.values())) > 3
    assert weight == max(expected, key=expected.get) > 0
    np.testing.assert_array_equal(chosen.strength, counted.times(weight).strength)
    np.testing.assert_array_equal(
        ranker.ranks(params, examples),
        Ranker(
            net, mesh, examples, targets_per_step=13, tokens_per_row=128, followers=counted.times(weight)
        ).ranks(params, examples),
    )


def test_equal_weights_leave_followers_out():
    """Where no history has followers, no weight changes a rank."""
    dataset = tiny_dataset()
    net, params = init_network(MODEL, 30, seed=3)
    counted, examples = count_followers(dataset), valid_examples(dataset)
    counted = counted._replace(strength=np.zeros_like(counted.strength))
    ranker = Ranker(net, device_mesh(jax.devices()[:1]), examples, targets_per_step=13, tokens_per_row=128)
    assert fitted_weight(ranker, params, examples, counted, 2.0)[0] == 0.0


@pytest.mark.slow
def test_a_run_ranks_saves_and_serves_with_what_it_chose(tmp_path):
    dataset = tiny_dataset()
    model = dataclasses.replace(MODEL, seen_bias=True, fit_followers=True)
    trainer = trainer_in(tmp_path, model=model, train=dataclasses.replace(TRAIN, max_epochs=1), dataset=dataset)
    result, saved = trainer.run(), load_run(tmp_path / 'model')
    weight = result['follower_weight']
    assert json.loads((tmp_path / 'result.json').read_text())['follower_weight'] == weight
    assert weight > 0
    for ours, theirs in zip(saved.followers, count_followers(dataset).times(weight), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    evaluator = Evaluator(saved.config, saved.dataset, saved.network, saved.mesh, 'test', followers=saved.followers)
    metrics = ranking_metrics(evaluator.ranks(saved.params, seen_out=False))
    assert metrics == pytest.approx({name: result['test'][name] for name in metrics})

    save_dataset(dataset, tmp_path / 'prepared')
    write_config(RunFolder(tmp_path), trainer.config, tmp_path / 'prepared')
    shutil.rmtree(tmp_path / 'model')  # The best checkpoint answers in its place, with the same weight.
    again = load_run(tmp_path)
    for ours, theirs in zip(again.followers, saved.followers, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    final = final_config(trainer.config, tmp_path).model
    assert (final.follower_weight, final.fit_followers) == (weight, False)
