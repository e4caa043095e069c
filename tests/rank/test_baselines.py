"""Popularity, the transition table and item-kNN, on literal histories and compared with plain loops."""
import itertools
from collections import Counter

import numpy as np
import pytest

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.rank import baselines
from ssd4rec_jax.rank.baselines import knn_ranks, popularity_ranks, transition_ranks


def dataset_of(histories, num_items):
    return SequenceDataset(
        name='literal', items=np.concatenate(histories).astype(np.int32), offsets=np.cumsum([0, *map(len, histories)]),
        user_ids=np.arange(len(histories)), item_ids=np.arange(num_items), fingerprint='',
    )


def random_histories(seed, users=60, num_items=15):
    rng = np.random.default_rng(seed)
    histories = [rng.integers(1, num_items + 1, rng.integers(5, 12)).tolist() for _ in range(users)]
    return histories, dataset_of(histories, num_items)


def position(target, key, num_items):
    """The rank of the target when items are sorted by descending key and then by ascending id."""
    return sorted(range(1, num_items + 1), key=lambda item: (-key(item), item)).index(target) + 1


def test_popularity_on_literal_histories():
    """Among items 1 .. n-2, items 1 and 2 occur twice, item 3 three times, and items 4 and 5 never."""
    dataset = dataset_of([[1, 2, 3, 4, 5], [3, 1, 2, 3, 1, 1]], 5)
    np.testing.assert_array_equal(popularity_ranks(dataset, 'valid'), [4, 2])
    np.testing.assert_array_equal(popularity_ranks(dataset, 'test'), [5, 2])


def test_held_out_items_count_for_nobody():
    """Item 2 is held out by every user, yet ranks behind each item seen in training."""
    dataset = dataset_of([[1, 3, 4, 2, 2]] * 4, 4)
    np.testing.assert_array_equal(popularity_ranks(dataset, 'valid'), [4] * 4)
    np.testing.assert_array_equal(popularity_ranks(dataset, 'test'), [4] * 4)


@pytest.mark.parametrize('split, held_out', [('valid', 2), ('test', 1)])
def test_popularity_matches_a_loop(split, held_out):
    histories, dataset = random_histories(1)
    counts = Counter(item for history in histories for item in history[:-2])
    expected = [position(h[-held_out], lambda i: counts[i], dataset.num_items) for h in histories]
    found = popularity_ranks(dataset, split)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('split, held_out', [('valid', 2), ('test', 1)])
def test_transitions_match_a_loop(split, held_out):
    histories, dataset = random_histories(2)
    counts = Counter(item for history in histories for item in history[:-2])
    followed = Counter(pair for h in histories for pair in itertools.pairwise(h[:-2]))

    def score_after(last):  # One number holds both, since no item occurs a thousand times here.
        return lambda item: 1000 * followed[last, item] + counts[item]

    expected = [
        position(h[-held_out], score_after(h[-held_out - 1]), dataset.num_items) for h in histories
    ]
    found = transition_ranks(dataset, split)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('num_items', [15, 100])
@pytest.mark.parametrize('at_once', [None, 50])
@pytest.mark.parametrize('split, held_out', [('valid', 2), ('test', 1)])
def test_neighbours_match_a_loop(split, held_out, at_once, num_items, monkeypatch):
    """Of 100 items many are like none of a history; at_once: numbers in a block, which then holds few items."""
    if at_once:
        monkeypatch.setattr(baselines, '_LIKENESSES', at_once)
        monkeypatch.setattr(baselines, '_SCORES', at_once)
    histories, dataset = random_histories(3, users=40, num_items=num_items)
    trained = [set(history[:-2]) for history in histories]
    counts = Counter(item for history in histories for item in history[:-2])
    expected = []
    for whole in histories:
        history = whole[:-held_out]

        def score(item, history=history):
            total = 0
            for other in set(history) - {item}:
                newest = max(k for k, i in enumerate(history, start=1) if i == other)
                both = sum({item, other} <= users for users in trained)
                users_of = [sum(i in users for users in trained) for i in (item, other)]
                total += newest / len(history) * both / max(users_of[0] * users_of[1], 1)**0.5
            return round(total, 9)

        order = sorted(range(1, num_items + 1), key=lambda item, score=score: (-score(item), -counts[item], item))
        expected.append(order.index(whole[-held_out]) + 1)
    found = knn_ranks(dataset, split)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_a_first_order_chain_is_ranked_first():
    """Every user goes round a ring, so the next item has always followed the last one."""
    histories = [[(start + k) % 9 + 1 for k in range(14)] for start in range(9)]
    dataset = dataset_of(histories, 9)
    for split in ('valid', 'test'):
        np.testing.assert_array_equal(transition_ranks(dataset, split), np.ones(9))
        assert popularity_ranks(dataset, split).mean() > 3


def test_transitions_to_held_out_items_do_not_count():
    """4 -> 4 leads to each validation item, but in training only item 1 follows item 4."""
    dataset = dataset_of([[4, 1, 2, 2, 4, 4, 3]] * 5, 4)
    found = transition_ranks(dataset, 'valid')
    np.testing.assert_array_equal(found, [3] * 5, 'item 1, then 2 and 4, equally popular')


@pytest.mark.parametrize('ranks_of', [popularity_ranks, transition_ranks, knn_ranks])
def test_what_a_user_has_seen_is_left_out(ranks_of):
    """A loop: the rank among all items, less the seen items that rank before the target; 0 for a seen target."""
    histories, dataset = random_histories(3)
    expected = []
    for user, history in enumerate(histories):
        before = set()
        for item in set(history[:-1]):  # the rank of another target in the same place
            changed = [*histories[:user], [*history[:-1], item], *histories[user + 1:]]
            if ranks_of(dataset_of(changed, dataset.num_items), 'test')[user] < ranks_of(dataset, 'test')[user]:
                before.add(item)
        expected.append(0 if history[-1] in history[:-1] else ranks_of(dataset, 'test')[user] - len(before))
    found = ranks_of(dataset, 'test', seen_out=True)
    assert 0 in expected and max(expected) > 1
    np.testing.assert_array_equal(found, expected)
