"""Preparation against a brute-force oracle in plain Python, and literal logs."""
import collections
import dataclasses
import hashlib

import numpy as np
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.sequences import build_sequences, k_core
from ssd4rec_jax.data.summary import describe
from ssd4rec_jax.errors import DataError


def make_log(rows: list[tuple], time_type=np.int64) -> Interactions:
    users, items, times = zip(*rows, strict=True)
    ids = np.int64 if isinstance(users[0], int) else object
    return Interactions(np.array(users, ids), np.array(items, ids), np.array(times, time_type), 'a log')


def expected_histories(rows: list[tuple], k: int, precision) -> tuple[dict, list]:
    """({user: items in time order}, items by first appearance), one row at a time."""
    keep = list(rows)
    while True:
        by_user = collections.Counter(user for user, _, _ in keep)
        by_item = collections.Counter(item for _, item, _ in keep)
        left = [row for row in keep if by_user[row[0]] >= k and by_item[row[1]] >= k]
        if len(left) == len(keep):
            break
        keep = left
    histories = {}
    for row, (user, item, time) in enumerate(keep):
        histories.setdefault(user, []).append((precision(time), row, item))
    return (
        {user: [item for _, _, item in sorted(history)] for user, history in histories.items()},
        list(dict.fromkeys(item for _, item, _ in keep)),
    )


def random_rows(seed: int, as_text: bool) -> list[tuple]:
    """Rows in no order, with ties in time that float32 makes more of, duplicates, id 0 and users below the core."""
    rng = np.random.default_rng(seed)
    n = 700
    users = np.minimum(rng.geometric(0.04, n), 60) - 1
    items = np.minimum(rng.geometric(0.05, n), 50) - 1
    times = 1_649_433_600_000 + rng.integers(0, 40, n) * 30_000
    rows = list(zip(users.tolist(), items.tolist(), times.tolist(), strict=True))
    return [(f'u{u}', f'i{i}', t) for u, i, t in rows] if as_text else rows


@pytest.mark.parametrize('precision', ['exact', 'float32'])
@pytest.mark.parametrize('as_text', [False, True])
@pytest.mark.parametrize('seed, k, block_rows', [(0, 5, 10**6), (1, 5, 64), (2, 4, 1), (3, 8, 699)])
def test_preparation_equals_the_oracle(seed, k, block_rows, as_text, precision):
    rows = random_rows(seed, as_text)
    config = DataConfig(min_interactions=k, timestamp_precision=precision)
    dataset = build_sequences(make_log(rows), config, name='x', block_rows=block_rows)
    histories, items = expected_histories(rows, k, int if precision == 'exact' else lambda t: float(np.float32(t)))
    assert 0 < dataset.num_users < len({u for u, _, _ in rows})  # the core removes some and leaves some
    assert dataset.user_ids.tolist() == list(histories)
    assert dataset.item_ids.tolist() == items
    assert dataset.items.dtype == np.int32 and dataset.offsets.dtype == np.int64
    assert dataset.num_interactions == sum(map(len, histories.values()))
    for user, start, stop in zip(dataset.user_ids.tolist(), dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        assert dataset.item_ids[dataset.items[start:stop] - 1].tolist() == histories[user]
    # The users whom the core left out have what they did with items that it kept.
    events = [
        (user, time, row, item) for row, (user, item, time) in enumerate(rows)
        if user not in histories and item in items
    ]
    others, order = dataset.outside, int if precision == 'exact' else lambda t: float(np.float32(t))
    assert set(others.user_ids.tolist()) == {user for user, _, _ in rows} - set(histories)
    assert others.items.dtype == np.int32 and len(others.items) == len(events)
    for user, start, stop in zip(others.user_ids.tolist(), others.offsets[:-1], others.offsets[1:], strict=True):
        expected = sorted((order(time), row, time, item) for who, time, row, item in events if who == user)
        assert dataset.item_ids[others.items[start:stop] - 1].tolist() == [item for *_, item in expected]
        assert others.times[start:stop].tolist() == [time for _, _, time, _ in expected]


def test_float32_times_change_the_order():
    rows = [(1, item, 1_649_433_600_000 + time) for item, time in [(1, 400), (2, 300), (3, 200), (4, 100)]]
    exact = build_sequences(make_log(rows), DataConfig(min_interactions=1), name='x')
    rounded = build_sequences(make_log(rows), DataConfig(min_interactions=1, timestamp_precision='float32'), name='x')
    assert exact.items.tolist() == [4, 3, 2, 1]
    assert rounded.items.tolist() == [1, 2, 3, 4]  # all four round to one time, so file order stays




@pytest.mark.parametrize('times', [[3, 0, 1], [1_600_000_003, 0, 1_600_000_001], [2**40, 5, 2**33], [-7, 2**62, 0]])
@pytest.mark.parametrize('unit', ['', 's'])
def test_times_are_kept_in_order_and_exactly(times, unit):
    log = dataclasses.replace(make_log([(1, k, time) for k, time in enumerate(times)]), time_unit=unit)
    dataset = build_sequences(log, DataConfig(min_interactions=1), name='x')
    assert dataset.times.dtype == np.int64 and dataset.times.tolist() == sorted(times) and dataset.time_unit == unit
    assert dataset.item_ids[dataset.items - 1].tolist() == [times.index(time) for time in sorted(times)]


def test_fractional_times_order_exactly():
    rows = [(1, item, time) for item, time in [(1, 0.75), (2, 0.5), (3, 0.5), (4, 0.25)]]
    log = make_log(rows, np.float64)
    assert build_sequences(log, DataConfig(min_interactions=1), name='x').items.tolist() == [4, 2, 3, 1]


def test_original_id_0_is_a_real_item_and_duplicates_are_kept():
    rows = [(0, 0, time) for time in range(6)]
    dataset = build_sequences(make_log(rows), DataConfig(), name='x')
    assert (dataset.num_users, dataset.num_items, dataset.items.tolist()) == (1, 1, [1] * 6)
    assert dataset.item_ids.tolist() == [0]


@pytest.mark.parametrize('shift', [-40, 2**40])
def test_ids_that_are_negative_or_far_apart_are_prepared_alike(shift):
    rows = random_rows(1, as_text=False)
    near, far = (
        build_sequences(make_log([(user + by, item * 3 + by, t) for user, item, t in rows]), DataConfig(), name='x')
        for by in (0, shift)
    )
    np.testing.assert_array_equal(far.items, near.items)
    np.testing.assert_array_equal(far.user_ids, near.user_ids + shift)
    np.testing.assert_array_equal(far.item_ids, near.item_ids + shift)
    assert far.item_ids.dtype == near.item_ids.dtype == np.int64


def test_the_core_is_iterated_to_its_end():
    # Removing item 9 (one row) leaves user 2 with one row, whose removal leaves item 5 with one, and so on.
    users = np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1])
    items = np.array([1, 2, 1, 2, 5, 9, 5, 6, 6, 7])
    core = k_core(users, items, 2, 2)
    assert np.flatnonzero(core.kept).tolist() == [0, 1, 2, 3]
    assert (core.by_user_rule, core.by_item_rule) == (2, 4)


def test_no_user_left_is_an_error():
    rows = [(user, user * 10 + k, k) for user in range(5) for k in range(6)]
    with pytest.raises(DataError, match='a log: of 30 rows none is left after the iterated user and item 5-core'):
        build_sequences(make_log(rows), DataConfig(), name='x')


def test_description_of_a_literal_log():
    rows = [(user, item, time) for time, item in enumerate([7, 8, 9, 7, 8]) for user in (10, 9, 100)]
    dataset = build_sequences(make_log(rows), DataConfig(min_interactions=3), name='x')
    summary = describe(dataset)
    assert summary == {
        'users': 3, 'items': 3, 'interactions': 15, 'median_length': 5.0, 'max_length': 5,
        'train_targets': 6, 'valid_targets': 3, 'test_targets': 3, 'rows': 15, 'bad_rows': 0, 'bad_kinds': {},
        'dropped_by_user_rule': 0, 'dropped_by_item_rule': 0, 'rules': 'user and item 3-core', 'all_users': 3,
        'all_items': 3, 'first_time': '0', 'last_time': '4', 'time_unit': '', 'repeats': 6, 'notes': [],
        'protocol': 'leave-one-out: the last interaction of each user is tested, the one before it validated',
        'test_items_sha256': hashlib.sha256(b'9,8\n10,8\n100,8\n').hexdigest(),
        'valid_items_sha256': hashlib.sha256(b'9,7\n10,7\n100,7\n').hexdigest(),
    }


@pytest.mark.parametrize('names, order', [(('10', '9', '100'), '9 10 100'), (('b', '9', '100'), '100 9 b')])
def test_digest_orders_text_ids_as_numbers_only_if_all_are(names, order):
    rows = [(user, 'i', time) for time in range(5) for user in names]
    summary = describe(build_sequences(make_log(rows), DataConfig(), name='x'))
    lines = ''.join(f'{user},i\n' for user in order.split())
    assert summary['test_items_sha256'] == hashlib.sha256(lines.encode()).hexdigest()
