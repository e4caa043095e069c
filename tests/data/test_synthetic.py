"""The generated log: its rule, and that only the order of several items reveals it."""
import numpy as np
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.rank.baselines import popularity_ranks, transition_ranks
from ssd4rec_jax.rank.metrics import ranking_metrics

PERIODS = (2, 3, 4)


@pytest.fixture(scope='module')
def dataset():
    return build_sequences(SyntheticSource().read(), DataConfig(), name='synthetic')


def test_it_depends_on_its_fields_alone():
    a, b, other = (SyntheticSource(seed=seed) for seed in (3, 3, 4))
    for column in ('users', 'items', 'times'):
        assert getattr(a.read(), column).tolist() == getattr(b.read(), column).tolist()
    assert a.read().items.tolist() != other.read().items.tolist()
    assert a.content_hash() == b.content_hash() != other.content_hash()


def histories_of(dataset) -> list[list[int]]:
    bounds = zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    return [dataset.items[start:stop].tolist() for start, stop in bounds]


def successors(histories) -> np.ndarray:
    """[items + 1] the item seen most often two to four steps after each item, read off the histories themselves."""
    size = max(map(max, histories)) + 1
    counts = np.zeros((size, size), np.int64)
    for history in histories:
        for lag in PERIODS:
            np.add.at(counts, (history[:-lag], history[lag:]), 1)
    return counts.argmax(axis=1)


def follows(history, successor, period) -> float:
    """Share of a history that the successor rule at this period tells."""
    return float(np.mean(successor[history[:-period]] == history[period:]))


def test_without_noise_each_user_follows_the_successor_rule_at_one_period():
    source = SyntheticSource(noise=0.0)
    histories = histories_of(build_sequences(source.read(), DataConfig(), name='synthetic'))
    successor = successors(histories)
    assert {source.min_length, source.max_length} == {min(map(len, histories)), max(map(len, histories))}
    periods = [{p for p in PERIODS if follows(history, successor, p) == 1.0} for history in histories]
    assert all(periods) and set().union(*periods) == set(PERIODS)
    cycle = [1]
    while (following := successor[cycle[-1]]) not in cycle:
        cycle.append(following)
    assert len(cycle) == source.chain_length and following == 1


def test_the_5_core_keeps_everything(dataset):
    source = SyntheticSource()
    assert dataset.num_users == source.num_users
    assert dataset.num_items == source.num_interests * source.chain_length
    assert dataset.num_interactions == len(source.read())


def test_only_the_order_of_several_items_reveals_the_next(dataset):
    popularity, transition, rule = (
        ranking_metrics(ranks)['NDCG@10']
        for ranks in (popularity_ranks(dataset, 'test'), transition_ranks(dataset, 'test'), rule_ranks(dataset))
    )
    assert rule > 0.75
    assert transition < 0.25 * rule
    assert popularity < 0.1 * rule


def rule_ranks(dataset) -> np.ndarray:
    """Ranks by the successor rule read off training items: first the guess of the period that fits the user best."""
    histories = histories_of(dataset)
    successor = successors([history[:-2] for history in histories])
    ranks = np.full(dataset.num_users, dataset.num_items)
    for user, (*read, target) in enumerate(histories):
        by_fit = sorted(PERIODS, key=lambda period: -follows(read, successor, period))
        guesses = [successor[read[-period]] for period in by_fit]
        if target in guesses:
            ranks[user] = 1 + guesses.index(target)
    return ranks
