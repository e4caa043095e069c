"""Prefix examples against the protocol written as loops over users."""
from pathlib import Path

import numpy as np
import pytest

from ssd4rec_jax.data import examples as ex
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, save_dataset
from ssd4rec_jax.errors import DataError


def dataset(histories: list[list[int]]) -> SequenceDataset:
    items = np.concatenate(histories).astype(np.int32)
    return SequenceDataset(
        name='literal', items=items, offsets=np.cumsum([0, *map(len, histories)]),
        user_ids=np.arange(len(histories)), item_ids=np.arange(items.max()), fingerprint='',
    )


def pairs(index: ex.ExampleIndex) -> list[tuple[list[int], int]]:
    return [
        (index.items[a:b].tolist(), int(t))
        for a, b, t in zip(index.start, index.stop, index.target, strict=True)
    ]


def protocol(histories, split: str, max_history: int = 0) -> list[tuple[list[int], int]]:
    """Histories and targets as DESIGN states them, user by user."""
    out = []
    for h in histories:
        n = len(h)
        reads = {'train': range(1, n - 2), 'valid': [n - 2], 'test': [n - 1]}[split]
        out += [(h[:k][-max_history:], h[k]) for k in reads]
    return out


SPLITS = {'train': ex.train_examples, 'valid': ex.valid_examples, 'test': ex.test_examples}
TWO_USERS = [[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25]]


def test_train_reads_every_prefix_up_to_three_from_the_end():
    index = ex.train_examples(dataset(TWO_USERS))
    assert pairs(index) == [
        ([11], 12), ([11, 12], 13), ([11, 12, 13], 14),
        ([21], 22), ([21, 22], 23),
    ]
    assert index.lengths.tolist() == [1, 2, 3, 1, 2]
    assert len(index) == 5 and index.cut == 0


def test_valid_reads_all_but_the_last_two():
    index = ex.valid_examples(dataset(TWO_USERS))
    assert pairs(index) == [([11, 12, 13, 14], 15), ([21, 22, 23], 24)]


def test_test_reads_the_validation_item_too():
    index = ex.test_examples(dataset(TWO_USERS))
    assert pairs(index) == [([11, 12, 13, 14, 15], 16), ([21, 22, 23, 24], 25)]


def test_max_history_keeps_the_newest_and_counts_what_it_cut():
    index = ex.train_examples(dataset(TWO_USERS), max_history=2)
    assert pairs(index) == [([11], 12), ([11, 12], 13), ([12, 13], 14), ([21], 22), ([21, 22], 23)]
    assert index.cut == 1
    assert ex.test_examples(dataset(TWO_USERS), max_history=4).cut == 1
    assert pairs(ex.test_examples(dataset(TWO_USERS), max_history=4))[0] == ([12, 13, 14, 15], 16)


def test_short_histories_train_first_and_are_tested_next_and_validated_last():
    short = dataset([[1, 2, 3], [4, 5, 6, 7], [8], [9, 10]])
    assert pairs(ex.train_examples(short)) == [([1], 2), ([4], 5), ([9], 10)]
    assert pairs(ex.valid_examples(short)) == [([4, 5], 6)]
    assert pairs(ex.test_examples(short)) == [([1, 2], 3), ([4, 5, 6], 7)]
    histories = ex.train_histories(short)
    assert [(histories.items[a:b].tolist(), histories.target[a:b].tolist()) for a, b in zip(
        histories.start, histories.stop, strict=True)] == [([1], [2]), ([4], [5]), ([9], [10])]


def test_newest_items_of_whole_histories_alone():
    histories = ex.train_histories(dataset(TWO_USERS), max_history=2)
    assert [(histories.items[a:b].tolist(), histories.target[a:b].tolist()) for a, b in zip(
        histories.start, histories.stop, strict=True)] == [([12, 13], [13, 14]), ([21, 22], [22, 23])]
    assert histories.cut == 1 and histories.num_targets.sum() == 4
    np.testing.assert_array_equal(histories.target_counts(23)[12:], [0, 1, 1, *[0] * 7, 1, 1])


def test_a_log_that_leaves_nothing_to_validate_on_says_what_to_do():
    with pytest.raises(DataError, match=r'nothing to validate on: histories have at most 3 .*data.split=users'):
        ex.valid_examples(dataset([[1, 2, 3], [4, 5, 6]]))


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('max_history', [0, 1, 7])
def test_matches_the_protocol_on_random_histories(split, max_history):
    rng = np.random.default_rng(5)
    histories = [rng.integers(1, 99, rng.integers(4, 30)).tolist() for _ in range(50)]
    index = SPLITS[split](dataset(histories), max_history=max_history)
    assert pairs(index) == protocol(histories, split, max_history)
    full = SPLITS[split](dataset(histories))
    assert index.cut == np.sum(full.lengths > max_history) * bool(max_history)


def test_dtypes_and_no_copy_of_the_items():
    data = dataset(TWO_USERS)
    index = ex.train_examples(data)
    assert index.items is data.items
    assert index.start.dtype == index.stop.dtype == np.int64
    assert index.target.dtype == np.int32


def test_a_memory_mapped_dataset_gives_the_same_examples_without_reading_it_whole(tmp_path: Path):
    save_dataset(dataset(TWO_USERS), tmp_path / 'prepared')
    mapped = open_dataset(tmp_path / 'prepared')
    index = ex.train_examples(mapped)
    assert pairs(index) == protocol(TWO_USERS, 'train')
    assert np.shares_memory(index.items, mapped.items)
    assert type(index.items) is np.ndarray
