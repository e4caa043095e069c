"""Counted followers compared with loops over pairs of interactions."""
import math

import numpy as np
import pytest

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.data import followers
from tests.tiny import history, tiny_dataset


def by_hand(dataset, weight, per_item):
    """{item: [(strength, follower), ...] best first}."""
    histories = [history(dataset, user, 2).tolist() for user in range(dataset.num_users)]  # what training reads
    occurs = {item: sum(own.count(item) for own in histories) for item in range(1, dataset.num_items + 1)}
    together = {}
    for own in histories:
        for at, before in enumerate(own):
            for distance, after in enumerate(own[at + 1:at + 11], start=1):
                together[before, after] = together.get((before, after), 0) + distance ** -0.5
    found = {}
    for (before, after), count in together.items():
        similarity = count / math.sqrt((occurs[before] + 5) * (occurs[after] + 5))
        found.setdefault(before, []).append((weight * math.log(1 + similarity / 0.03), after))
    return {item: sorted(own, key=lambda pair: (-pair[0], pair[1]))[:per_item] for item, own in found.items()}


@pytest.mark.parametrize('per_item, at_once', [(64, 2**24), (4, 100)])
def test_followers_are_those_of_a_loop_whole_and_in_blocks(monkeypatch, per_item, at_once):
    monkeypatch.setattr(followers, 'PER_ITEM', per_item)
    monkeypatch.setattr(followers, '_PAIRS_AT_ONCE', at_once)
    dataset = tiny_dataset()
    found, expected = followers.count_followers(dataset).times(1.5), by_hand(dataset, 1.5, per_item)
    by_hand_all = by_hand(dataset, 1.5, 31)
    assert any(after == item for item in by_hand_all for _, after in by_hand_all[item])  # an item that comes back
    assert found.items.shape == found.strength.shape == (31, per_item)
    assert len(expected) == 30 and (max(map(len, expected.values())) == 4) == (per_item == 4)
    for item in range(31):
        own = expected.get(item, [])
        np.testing.assert_allclose(found.strength[item, :len(own)], [value for value, _ in own], rtol=1e-6)
        strength = {after: value for value, after in by_hand_all[item]} if own else {}
        np.testing.assert_allclose(
            [strength[after] for after in found.items[item, :len(own)].tolist()], [value for value, _ in own], rtol=1e-6
        )
        assert len(set(found.items[item, :len(own)].tolist())) == len(own)
        assert not found.items[item, len(own):].any() and not found.strength[item, len(own):].any()


def test_held_out_items_are_not_counted_and_without_a_weight_nothing_is():
    dataset = tiny_dataset()
    before = followers.count_followers(dataset)
    changed = dataset.items.copy()
    changed[dataset.offsets[1:] - 1] = changed[dataset.offsets[1:] - 2] = 7
    dataset.items[:] = changed
    for one, other in zip(before, followers.count_followers(dataset), strict=True):
        np.testing.assert_array_equal(one, other)
    assert followers.followers_of(ModelConfig(), dataset) is None
    assert followers.followers_of(object(), dataset) is None  # the settings of a network of someone's own


def test_a_new_item_follows_as_its_group_does_in_the_mean(monkeypatch):
    """Item 4 is like 2 and 3, item 5 like 3; two followers of each item are kept."""
    known = followers.Followers(
        np.array([[0, 0], [2, 3], [3, 0], [3, 1]], np.int32),
        np.array([[0, 0], [5, 1], [2, 0], [6, 4]], np.float32),  # 3 comes back
    )
    found = followers.with_new_items(known, [np.array([2, 3]), np.array([3])])
    assert found.items.tolist() == [[0, 0], [2, 4], [3, 5], [3, 1], [0, 0], [0, 0]]
    assert found.strength.tolist() == [[0, 0], [5, 3], [2, 2], [6, 4], [0, 0], [0, 0]]
