"""What an epoch costs, worked out by hand for small logs."""
import numpy as np
import pytest

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.train.cost import cost_note, time_note
from ssd4rec_jax.train.objective import training_examples

ONE_LAYER, TWO_LAYERS = ModelConfig(num_layers=1), ModelConfig(num_layers=2)


def log(length: int) -> SequenceDataset:
    return SequenceDataset(
        name='bot', items=np.ones(length, np.int32), offsets=np.array([0, length]), user_ids=np.array([1]),
        item_ids=np.array([1]), fingerprint='',
    )


@pytest.mark.parametrize('length, model, max_history, expected', [
    # Prefixes of 1 .. 30,000 of 30,003 items: 30,000 * 30,001 / 2 tokens, of which one pass reads 30,000.
    (30_003, ONE_LAYER, 0, '450,015,000 tokens; --set=train.objective=one_pass would read 30,000, 15,000 times less'),
    # At most 256 tokens of each: 256 * 257 / 2 + 29,744 * 256.
    (30_003, TWO_LAYERS, 0, '450,015,000 tokens; --set=data.max_history=256 would read 7,647,360, 59 times less'),
    (30_003, TWO_LAYERS, 256, '7,647,360 tokens'),
    (5, ONE_LAYER, 0, '3 tokens'),
])
def test_an_epoch_in_tokens(length, model, max_history, expected):
    dataset = log(length)
    examples = training_examples('auto', model, dataset, max_history)
    assert cost_note(examples, dataset, model, max_history) == f'cost: an epoch reads {expected}'


def test_one_pass_has_nothing_to_advise():
    dataset = log(1003)
    examples = training_examples('one_pass', ONE_LAYER, dataset, 0)
    assert cost_note(examples, dataset, ONE_LAYER, 0) == 'cost: an epoch reads 1,000 tokens'


@pytest.mark.parametrize('seconds, words', [(0.5, '10 s'), (10, '3 min'), (500, '2.8 h')])
def test_time_in_words(seconds, words):
    assert time_note(seconds, 5, 100) == (
        f'at the speed of the first 5 steps an epoch of 100 takes {words} on this machine'
    )
