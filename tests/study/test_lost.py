"""Which share of the interactions a training leaves out, against loops over the histories."""
import dataclasses

import pytest

from ssd4rec_jax.config.peers import BERT4RecConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.study.cell import interactions_lost
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset

DATASET = tiny_dataset(users=40, items=25)
TRAINED = [int(n) - 2 for n in DATASET.lengths]  # with leave-one-out


def config(objective, max_history=0, model=MODEL):
    data = dataclasses.replace(DATA, max_history=max_history)
    return RunConfig('interactions', model, data, dataclasses.replace(TRAIN, objective=objective))


def test_prefixes_lose_what_lies_before_their_newest_items():
    prefixes = [length for n in TRAINED for length in range(1, n)]
    wanted = 1 - sum(min(n, 4) for n in prefixes) / sum(prefixes)
    assert interactions_lost(DATASET, config('prefix', 4)) == pytest.approx(wanted) and wanted > 0
    assert interactions_lost(DATASET, config('prefix')) == interactions_lost(DATASET, config('one_pass')) == 0


def test_truncated_histories_lose_it_once_for_each_user():
    read = [n - 1 for n in TRAINED if n > 1]  # the last item is a target alone
    wanted = 1 - sum(min(n, 4) for n in read) / sum(read)
    assert interactions_lost(DATASET, config('truncated', 4)) == pytest.approx(wanted) and wanted > 0


def test_a_cloze_loses_windows_of_a_single_item_alone():
    model = BERT4RecConfig(max_length=4)
    alone = sum(n % 4 == 1 for n in TRAINED)
    assert alone > 0
    assert interactions_lost(DATASET, config('cloze', model=model)) == pytest.approx(alone / sum(TRAINED))


def test_a_cloze_of_the_newest_items_loses_what_its_shorter_windows_leave():
    model = BERT4RecConfig(max_length=50)
    windows = 3 + 1  # max_history items and the one to predict
    alone = sum(n % windows == 1 for n in TRAINED)
    assert alone > 0
    assert interactions_lost(DATASET, config('cloze', 3, model)) == pytest.approx(alone / sum(TRAINED))
