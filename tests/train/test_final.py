"""The run that serves: on every interaction, for the epochs that an earlier run found best."""
import dataclasses

import pytest

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import with_split
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.final import final_config
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset, trainer_in

CONFIG = RunConfig('interactions', MODEL, DATA, TRAIN)


def test_the_earlier_run_gives_the_epochs(tmp_path):
    RunFolder(tmp_path).write_result({'protocol': 'leave-one-out: ...', 'best_epoch': 7})
    final = final_config(CONFIG, tmp_path)
    assert (final.data.split, final.train.max_epochs) == ('none', 7)
    assert dataclasses.replace(final, data=DATA, train=TRAIN) == CONFIG


@pytest.mark.parametrize('result, message', [
    (None, 'holds no finished run'), ({'protocol': 'none: trained on everything', 'best_epoch': 7}, 'held nothing out'),
])
def test_a_folder_that_cannot_tell_is_refused(tmp_path, result, message):
    if result:
        RunFolder(tmp_path).write_result(result)
    with pytest.raises(ConfigError, match=message):
        final_config(CONFIG, tmp_path)


@pytest.mark.slow
def test_every_interaction_trains_and_the_last_epoch_is_the_best(tmp_path):
    data = dataclasses.replace(DATA, split='none')
    dataset = with_split(tiny_dataset(), data)
    trainer = trainer_in(tmp_path / 'run', data=data, dataset=dataset)
    result = trainer.run()
    assert trainer.examples.num_targets.sum() == (dataset.lengths - 1).sum()
    assert result['best_epoch'] == result['epochs'] == 2
    assert result['protocol'].startswith('none: trained on everything')
