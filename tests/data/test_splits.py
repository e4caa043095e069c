"""What each protocol trains on and holds out, written out for literal histories."""
import dataclasses

import numpy as np
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset, with_split
from ssd4rec_jax.data.examples import test_examples as held_out_tests
from ssd4rec_jax.data.examples import train_examples, train_histories, unseen, valid_examples
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.rank.baselines import popularity_ranks, transition_ranks

DAY = 86_400
# Histories of items, and the days since 1970-01-01 of each.
HISTORIES = [[1, 2, 3, 4, 5], [2, 1, 3], [4], [5, 5, 6]]
DAYS = [[1, 2, 3, 4, 5], [1, 1, 2], [9], [3, 4, 9]]


def dataset(histories=HISTORIES, days=DAYS, unit='s') -> SequenceDataset:
    items = np.concatenate(histories).astype(np.int32)
    return SequenceDataset(
        name='literal', items=items, offsets=np.cumsum([0, *map(len, histories)]), user_ids=np.arange(len(histories)),
        item_ids=np.arange(items.max()), fingerprint='', times=np.concatenate(days) * DAY, time_unit=unit,
    )


def split_by(**settings) -> SequenceDataset:
    return with_split(dataset(), DataConfig(**settings))


def pairs(index) -> list[tuple[list[int], int]]:
    return [(index.items[a:b].tolist(), int(t)) for a, b, t in zip(index.start, index.stop, index.target, strict=True)]


def test_last_n_tests_n_and_validates_n_and_trains_on_two_at_least():
    histories = [[1, 2, 3, 4, 5, 6], [1, 2, 3]]
    log = with_split(dataset(histories, histories), DataConfig(split='last_n', split_last=2))
    assert pairs(train_examples(log)) == [([1], 2), ([1], 2)]
    assert pairs(valid_examples(log)) == [([1, 2], 3), ([1, 2, 3], 4)]
    assert pairs(held_out_tests(log)) == [([1, 2, 3, 4], 5), ([1, 2, 3, 4, 5], 6), ([1, 2], 3)]
    assert log.held_out.protocol.startswith('last 2: ')


def test_a_cut_in_time_trains_before_it_and_leaks_nothing():
    log = split_by(split='time', split_valid_time='1970-01-04T00:00:00', split_test_time='1970-01-05')
    assert pairs(train_examples(log)) == [([1], 2), ([2], 1), ([2, 1], 3)]
    assert pairs(valid_examples(log)) == [([1, 2], 3)]
    # The user whose only interaction lies behind the cut has nothing to be predicted from.
    assert pairs(held_out_tests(log)) == [([1, 2, 3], 4), ([1, 2, 3, 4], 5), ([5], 5), ([5, 5], 6)]
    assert 'trained before 1970-01-04T00:00:00, validated until 1970-01-05T00:00:00' in log.held_out.protocol
    assert np.flatnonzero(unseen(log)).tolist() == [0, 4, 5, 6]
    assert held_out_tests(log).missed.tolist() == [True] * 4 and valid_examples(log).missed.tolist() == [False]
    assert popularity_ranks(log, 'test').tolist() == transition_ranks(log, 'test').tolist() == [7] * 4


def test_a_cut_in_time_without_dates_takes_shares_of_the_interactions():
    log = split_by(split='time')
    assert pairs(held_out_tests(log)) == [([5, 5], 6)]
    assert pairs(valid_examples(log)) == [([1, 2, 3, 4], 5)]


def test_users_held_out_train_nothing():
    histories = [[u, u + 1, u + 2] for u in range(1, 21)]
    log = with_split(dataset(histories, histories), DataConfig(split='users', split_share=0.1))
    tested, validated = ([history for history, _ in pairs(make(log))] for make in (held_out_tests, valid_examples))
    assert len(tested) == len(validated) == 2
    trained = {h[0] for h, _ in pairs(train_examples(log)) if len(h) == 1}
    assert trained == set(range(1, 21)) - {h[0] for h in tested + validated}
    assert len(train_examples(log)) == 32 and train_histories(log).num_targets.sum() == 32


def test_nothing_held_out_trains_on_everything_and_says_so():
    log = split_by(split='none')
    assert len(train_examples(log)) == 4 + 2 + 0 + 2
    assert pairs(held_out_tests(log)) == pairs(valid_examples(log)) == [
        ([1, 2, 3, 4], 5), ([2, 1], 3), ([5, 5], 6)
    ]
    assert 'trained on everything' in log.held_out.protocol


@pytest.mark.parametrize('settings, unit, message', [
    ({'split': 'time'}, '', 'needs times, and those of this log are positions alone'),
    ({'split': 'time', 'split_test_time': '1969-01-01'}, 's', 'in this order between the first time, 1970-01-02'),
    ({'split': 'users', 'split_share': 0.01}, 's', 'data.split_share=0.01 of 4 users leaves none'),
])
def test_a_log_that_does_not_allow_a_split(settings, unit, message):
    with pytest.raises(DataError, match=message):
        with_split(dataset(unit=unit), DataConfig(**settings))


def test_a_data_set_of_an_older_version_has_no_times_to_split_by():
    with pytest.raises(DataError, match='needs times'):
        with_split(dataclasses.replace(dataset(), times=None), DataConfig(split='time'))


@pytest.mark.parametrize('settings, message', [
    ({'split': 'random'}, "data.split='random' must be one of leave_one_out, last_n, time, users, files, none"),
    ({'split_last': 0}, 'data.split_last=0 must be at least 1'),
    ({'split_share': 0.5}, 'data.split_share=0.5 must lie between 0 and 0.5'),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)


def test_a_date_that_is_none():
    with pytest.raises(ConfigError, match='data.split_test_time=soon is no date'):
        split_by(split='time', split_test_time='soon')
