"""Peers in whole runs: trained on two devices, saved, and evaluated by what serves SSD4Rec."""
import dataclasses

import jax
import pytest

from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.config.plugs import loss_settings
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import save_dataset
from ssd4rec_jax.rank.evaluation import Evaluator
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import load_run, write_config
from tests.tiny import DATA, TRAIN, tiny_dataset, trainer_in


@pytest.mark.slow
@pytest.mark.parametrize('name, loss, objective', [
    ('gru4rec', 'sampled', 'one_pass'), ('bert4rec', 'sampled', 'cloze'), ('sasrec', 'gbce', 'prefix'),
    ('hstu', 'uniform', 'fastest'), ('tim4rec', 'full', 'prefix'), ('lrurec', 'full', 'one_pass'),
    ('mamba4rec', 'sampled', 'one_pass'), ('sigma', 'full', 'prefix'), ('caser', 'full', 'prefix'),
])
def test_a_run_is_trained_saved_and_evaluated(tmp_path, name, loss, objective):
    save_dataset(tiny_dataset(), tmp_path / 'prepared')
    train = dataclasses.replace(TRAIN, loss=loss, objective=objective, num_negatives=16, learning_rate=0.01)
    config = RunConfig('interactions', PEERS[name](hidden_size=16), DATA, train, loss_settings(loss)())
    trainer = trainer_in(
        tmp_path / 'run', model=config.model, train=train, loss=config.loss, devices=jax.devices()[:2]
    )
    write_config(RunFolder(tmp_path / 'run'), config, tmp_path / 'prepared')
    result = trainer.run()
    saved = load_run(tmp_path / 'run')
    assert saved.config.model == config.model
    found = Evaluator(saved.config, saved.dataset, saved.network, saved.mesh, 'test').evaluate(
        saved.params, longest_list=10, seen_out=False
    ).metrics((10,))
    metrics = dict(zip(found['metric'], found['value'], strict=True))
    assert metrics['NDCG@10'] == pytest.approx(result['test']['NDCG@10'], abs=1e-6)
