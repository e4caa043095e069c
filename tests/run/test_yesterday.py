"""Run folders and prepared data that version 28be952 wrote open, answer and go on as they did then.

run-full was trained on one device with the full softmax, run-sampled on two devices that shared a table of 25 rows,
which 28be952 itself could not open again. Their config.json names the prepared data by the absolute path of that
machine; the fixture puts a path of its own in its place.
"""
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.examples import test_examples as the_test_examples
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.model.network import parameters_sha256
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run import saved_run
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.trainer import Trainer
from tests.tiny import Notes

YESTERDAY = Path(__file__).parents[1] / 'yesterday' / '28be952'


@pytest.fixture
def folder(tmp_path):
    """A copy whose runs know where their prepared data lies."""
    root = tmp_path / 'copy'
    shutil.copytree(YESTERDAY, root)
    for config in root.glob('run-*/config.json'):
        config.write_text(config.read_text().replace('PREPARED', str(root / 'prepared')))
    return root


def use_devices(monkeypatch, count):
    monkeypatch.setattr(saved_run, 'device_mesh', lambda model_shards: device_mesh(jax.devices()[:count], model_shards))


@pytest.mark.parametrize('run, devices, shards', [
    ('run-full', 1, 1), ('run-full', 2, 2), ('run-sampled', 1, 1), ('run-sampled', 4, 4),
])
def test_it_gives_the_metrics_that_it_had(folder, monkeypatch, run, devices, shards):
    use_devices(monkeypatch, devices)
    saved = saved_run.load_run(folder / run, model_shards=shards)
    result = json.loads((folder / run / 'result.json').read_text())
    assert parameters_sha256(saved.network.whole(saved.params)) == result['parameters_sha256']
    examples = the_test_examples(saved.dataset)
    ranker = Ranker(saved.network, saved.mesh, examples, targets_per_step=64, tokens_per_row=64)
    assert ranker.metrics(saved.params, examples) == pytest.approx(result['test'])


def test_it_recommends_what_it_recommended(folder, monkeypatch):
    """What `recommend --users=u1,u2 --k=3` printed then."""
    use_devices(monkeypatch, 1)
    saved = saved_run.load_run(folder / 'run-full')
    dataset = saved.dataset
    users = [dataset.user_ids.tolist().index(name) for name in ('u1', 'u2')]
    histories = [dataset.items[dataset.offsets[u]:dataset.offsets[u + 1]] for u in users]
    items, scores = TopItems(saved.network, saved.mesh, saved.params)(histories, k=3)
    names = [[dataset.item_ids[item - 1] for item in row] for row in items]
    assert names == [['i0', 'i12', 'i19'], ['i20', 'i22', 'i23']]
    np.testing.assert_allclose(scores, [[.168436, .099572, .099024], [.113566, .089902, .071405]], atol=2e-6)


@pytest.mark.slow
def test_its_training_goes_on(folder, monkeypatch):
    """One more epoch than it had, from its last checkpoint."""
    use_devices(monkeypatch, 1)
    saved, notes = saved_run.load_run(folder / 'run-full'), Notes()
    config = dataclasses.replace(saved.config, train=dataclasses.replace(saved.config.train, max_epochs=3))
    run_folder = RunFolder(folder / 'run-full')
    run_folder.lock()
    result = Trainer(config, saved.dataset, run_folder, devices=jax.devices()[:1], reporter=notes).run()
    assert result['epochs'] == 3 and any('going on from step 8 (epoch 3' in note for note in notes.notes)


def test_its_log_prepares_to_the_same_data(folder):
    source = find_source('interactions', folder / 'log.csv')
    dataset, _ = prepare(source, DataConfig(min_interactions=4), folder / 'again')
    there = saved_run.load_run(folder / 'run-full').dataset
    for name in ('items', 'offsets', 'user_ids', 'item_ids'):
        assert np.array_equal(getattr(dataset, name), getattr(there, name)), name
