"""Whole training runs with the sampled softmax."""
import dataclasses
import json

import jax
import numpy as np
import pytest

from ssd4rec_jax.config.train import SAMPLED_ABOVE, TrainConfig
from ssd4rec_jax.data.examples import train_examples, train_histories
from ssd4rec_jax.errors import ConfigError
from tests import tiny
from tests.tiny import StopAfter, history, tiny_dataset, trainer_in

pytestmark = pytest.mark.slow  # Compiling for many meshes and kills of whole runs take minutes.

SAMPLED = dataclasses.replace(tiny.TRAIN, loss='sampled', num_negatives=64, max_epochs=6, log_every=1)


def test_auto_samples_large_catalogues_alone():
    assert TrainConfig().loss_name(SAMPLED_ABOVE) == 'full'
    assert TrainConfig().loss_name(SAMPLED_ABOVE + 1) == 'sampled'
    assert TrainConfig(loss='full').loss_name(10**8) == 'full'
    assert TrainConfig(loss='sampled').loss_name(10) == 'sampled'


def test_target_counts_are_those_of_the_training_prefixes():
    dataset = tiny_dataset()
    expected = np.zeros(31, int)
    for user in range(60):
        for item in history(dataset, user, held_out=2)[1:]:
            expected[item] += 1
    np.testing.assert_array_equal(train_examples(dataset).target_counts(30), expected)
    np.testing.assert_array_equal(train_histories(dataset).target_counts(30), expected)


@pytest.mark.parametrize('table_dtype', ['float32', 'bfloat16'])
def test_a_run_learns_says_so_and_goes_on_bitwise(tmp_path, table_dtype):
    model = dataclasses.replace(tiny.MODEL, table_dtype=table_dtype)
    notes = tiny.Notes()
    trainer = trainer_in(tmp_path / 'whole', train=SAMPLED, model=model, reporter=notes)
    result = trainer.run()
    assert result['loss'] == 'sampled'
    assert any('softmax sampled from 30 items, 64 uniform negatives' in note for note in notes.notes)
    assert trainer.state.params['item_embedding'].dtype == table_dtype
    assert trainer.state.opt_state['item_embedding'].shape == (31,)
    records = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
    losses = [record['epoch_loss'] for record in records if record['kind'] == 'valid']
    # With 64 negatives of 31 rows and the targets of a row, logQ-corrected, the untrained loss is near log 31.
    assert abs(losses[0] - np.log(31)) < 0.35 and losses[-1] < losses[0] - 0.02
    assert trainer_in(tmp_path / 'cut', train=SAMPLED, model=model, stop_requested=StopAfter(3)).run() is None
    again = trainer_in(tmp_path / 'cut', train=SAMPLED, model=model).run()
    assert again['parameters_sha256'] == result['parameters_sha256']
    assert again['test'] == result['test']


def test_a_run_with_the_table_split_ends_where_one_device_s_does(tmp_path):
    data = dataclasses.replace(tiny.DATA, rows_per_step=8)
    ends = []
    for shards in (1, 4):
        one_epoch = dataclasses.replace(SAMPLED, max_epochs=1)
        trainer = trainer_in(tmp_path / str(shards), train=one_epoch, data=data, model_shards=shards)
        trainer.run()
        ends.append(trainer.program.network.whole(trainer.state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)


def test_a_bfloat16_table_needs_the_sampled_loss(tmp_path):
    model = dataclasses.replace(tiny.MODEL, table_dtype='bfloat16')
    with pytest.raises(ConfigError, match='model.table_dtype=bfloat16 needs train.loss=sampled'):
        trainer_in(tmp_path, model=model)
