"""What is kept of a finished run, and that its command trains the same config."""
import dataclasses

import pytest
from absl import flags

from experiments.record_run import record
from ssd4rec_jax.config.run import apply_overrides, from_dict
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import default_config, preset_config
from ssd4rec_jax.presets.command import train_command
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import write_config
from tests.tiny import TRAIN, trainer_in


def test_the_command_means_the_config():
    config = preset_config('ml-100k', 'best', None, None)[0]
    words = train_command(config).split()
    assert words[:3] == ['ssd4rec', 'train', '--dataset=ml-100k'] and '--preset=published' in words
    sets = [word.removeprefix('--set=') for word in words if word.startswith('--set=')]
    assert apply_overrides(default_config('ml-100k'), sets) == config


@pytest.mark.slow
def test_a_finished_run(tmp_path):
    flags.FLAGS(['test'])
    trainer = trainer_in(tmp_path / 'run', train=dataclasses.replace(TRAIN, seed=7))
    with pytest.raises(ConfigError, match='no finished run'):
        record(RunFolder(tmp_path / 'run'))
    result = trainer.run()
    write_config(trainer.folder, trainer.config, tmp_path)
    kept = record(RunFolder(tmp_path / 'run'))
    assert (kept['seed'], kept['test'], kept['best_epoch']) == (7, result['test'], result['best_epoch'])
    assert [row['epoch'] for row in kept['curve']] == [1, 2]
    assert max(row['NDCG@10'] for row in kept['curve']) == kept['valid']['NDCG@10']
    assert from_dict(kept['config']) == trainer.config
