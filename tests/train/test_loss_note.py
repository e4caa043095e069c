"""The sentence that says which loss trains a catalogue, and what updates the item table where a step samples."""
import pytest

from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.train.objective import loss_note


@pytest.mark.parametrize('settings, note', [
    ({'loss': 'full'}, 'loss: full softmax over 1,000 items'),
    ({'loss': 'auto'}, 'loss: full softmax over 1,000 items'),
    ({'loss': 'sampled', 'num_negatives': 64},
     'loss: softmax sampled from 1,000 items, 64 uniform negatives a step and the other targets of a row, '
     'logQ-corrected; item table by row-wise Adagrad'),
    ({'loss': 'gbce', 'num_negatives': 256, 'table_optimizer': 'adam'},
     'loss: gbce over 1,000 items, 256 uniform negatives; item table by Adam'),
    ({'loss': 'uniform', 'num_negatives': 128, 'table_optimizer': 'adagrad'},
     'loss: uniform over 1,000 items, 128 uniform negatives; item table by row-wise Adagrad'),
])
def test_the_loss_and_what_updates_the_item_table(settings, note):
    assert loss_note(TrainConfig(**settings), 1000) == note


def test_auto_says_that_all_items_could_be_scored():
    note = loss_note(TrainConfig(), 2_000_000)
    assert 'sampled from 2,000,000 items (train.loss=full would score them all), ' in note
