"""Differences of two rows against loops and scipy's own paired test."""
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from ssd4rec_jax.study.statistics import difference, kept_ranks, kept_values, user_values


def test_values_of_users_with_several_held_out_items():
    ranks, users = np.array([1, 3, 0, 11, 2]), np.array([4, 4, 7, 7, 9])
    np.testing.assert_allclose(user_values(ranks, users, 'NDCG@10'), [(1 + 1 / 2) / 2, 0, 1 / np.log2(3)])
    np.testing.assert_allclose(user_values(ranks, users, 'HR@20'), [1, 0.5, 1])
    np.testing.assert_allclose(user_values(ranks, users, 'MRR@2'), [0.5, 0, 0.5])


@pytest.mark.parametrize('users', [np.arange(5) + 3, np.array([4, 4, 7, 7, 9])], ids=['one each', 'several'])
def test_records_keep_all_that_the_values_of_users_need(users):
    ranks = {'in': np.array([1, 3, 0, 11, 10]), 'out': np.array([1, 2, 0, 11, 12])}
    kept = json.loads(json.dumps(kept_ranks(ranks, users)))
    assert kept['in'].count(':') == 3 and kept['out'].count(':') == 2
    for seen, metric in itertools.product(ranks, ('HR@10', 'NDCG@10', 'MRR@5')):
        np.testing.assert_array_equal(kept_values(kept, 5, seen, metric), user_values(ranks[seen], users, metric))
    nobody = kept_ranks({'in': np.array([0, 11])}, np.array([1, 2]))
    assert nobody == {'targets': '', 'in': ''} and list(kept_values(nobody, 2, 'in', 'HR@10')) == [0, 0]


@pytest.fixture(scope='module')
def values():
    rng = np.random.default_rng(0)
    own, other = (np.where(rng.random((3, 400)) < share, 1 / rng.integers(1, 6, (3, 400)), 0.0) for share in (.4, .33))
    return own, other


def test_the_interval_is_that_of_a_loop_over_resampled_users_and_seeds(values):
    own, other = values
    rng, means = np.random.default_rng(5), []
    for _ in range(4000):
        users, seeds = rng.integers(0, 400, 400), rng.integers(0, 3, 3)
        means.append((own - other)[seeds][:, users].mean())
    found = difference(own, other)
    assert found.mean == pytest.approx(np.mean(own) - np.mean(other), abs=1e-12)
    spread = np.std(means)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, (0.025, 0.975)), atol=0.15 * spread)


def test_the_test_is_scipys_paired_one_over_users(values):
    own, other = values
    wanted = stats.ttest_rel(own.mean(axis=0), other.mean(axis=0)).pvalue
    assert difference(own, other).p == pytest.approx(wanted, rel=1e-9)
    assert difference(own, own) == (0.0, 0.0, 0.0, None)
    same = difference(np.ones((2, 5)), np.zeros((1, 5)))
    assert same == (1.0, 1.0, 1.0, 0.0), 'all users differ by the same'

