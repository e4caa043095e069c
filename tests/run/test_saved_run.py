"""A run saved with its item table on some devices opens on any other number of them."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import save_dataset
from ssd4rec_jax.data.examples import valid_examples
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.run import saved_run
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.early_stopping import EarlyStopping
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset, trainer_in

CONFIG = RunConfig('interactions', MODEL, dataclasses.replace(DATA, rows_per_step=12), TRAIN)


@pytest.fixture(scope='module', params=[1, 2, 3, 4])
def saved_on(request, tmp_path_factory):
    """(folder of a run with one evaluated checkpoint, its parameters whole), written by as many devices as share the table.

    The table has 31 rows, which 2, 3 and 4 devices hold with padding.
    """
    root, shards = tmp_path_factory.mktemp('saved'), request.param
    save_dataset(tiny_dataset(), root / 'prepared')
    trainer = trainer_in(root / 'run', data=CONFIG.data, devices=jax.devices()[:shards], model_shards=shards)
    saved_run.write_config(RunFolder(root / 'run'), CONFIG, root / 'prepared')
    session = trainer.session
    session.progress = session.progress.after_epoch(EarlyStopping(0.5, best_epoch=1, best_step=1), 0.5)
    session.save(trainer.state._replace(step=jnp.int32(1)))
    session.checkpoints.wait()
    return root / 'run', trainer.program.network.whole(trainer.state.params)


@pytest.mark.parametrize('shards', [1, 2, 4])
def test_it_opens_on_another_number_of_devices_with_the_same_parameters_and_ranks(saved_on, monkeypatch, shards):
    path, params = saved_on
    monkeypatch.setattr(
        saved_run, 'device_mesh', lambda model_shards: device_mesh(jax.devices()[:model_shards], model_shards)
    )
    saved = saved_run.load_run(path, model_shards=shards)
    whole = saved.network.whole(saved.params)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    examples = valid_examples(saved.dataset)
    ranks = [
        Ranker(saved.network, mesh, examples, targets_per_step=64, tokens_per_row=128).ranks(weights, examples)
        for mesh, weights in ((saved.mesh, saved.params), (device_mesh(jax.devices()[:1]), params))
    ]
    # New parameters are small: rounding may swap items that score alike.
    assert np.mean(ranks[0] != ranks[1]) < 0.05 and len(set(ranks[0].tolist())) > 10
