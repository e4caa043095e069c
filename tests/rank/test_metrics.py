"""Ranks and metrics compared with a brute-force ranking; ties, cutoffs, and scores that are not finite."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.rank.metrics import ranking_metrics, ranks
from ssd4rec_jax.rank.report import metric_frame, set_metric_frame


def brute_force_rank(scores, target):
    """The position of the target in the list of items sorted by descending score and then by ascending id."""
    order = sorted(range(1, len(scores)), key=lambda item: (-scores[item], item))
    return order.index(target) + 1


@pytest.mark.parametrize('levels', [3, 1000])
def test_ranks_match_a_brute_force_sort(levels):
    """With three score levels, ties decide nearly every rank."""
    rng = np.random.default_rng(levels)
    scores = rng.integers(-levels, levels, (200, 41)).astype(np.float32) / 7
    scores[:, 0] = -np.inf
    targets = rng.integers(1, 41, 200).astype(np.int32)
    rank, finite = jax.jit(ranks)(scores, targets)
    assert rank.dtype == jnp.int32 and finite.dtype == jnp.bool_
    np.testing.assert_array_equal(rank, [brute_force_rank(s, t) for s, t in zip(scores, targets, strict=True)])
    assert finite.all()


@pytest.mark.parametrize('item_0', [-np.inf, np.inf, np.nan, 5.0])
def test_literal_ranks(item_0):
    """Whatever item 0 scores, it neither ranks nor counts as a score."""
    scores = jnp.asarray([[item_0, 1.0, 3.0, 3.0, 2.0, 1.0]] * 5, jnp.float32)
    rank, finite = ranks(scores, jnp.asarray([1, 2, 3, 4, 5], jnp.int32))
    np.testing.assert_array_equal(rank, [4, 1, 2, 3, 5])
    assert finite.all()


def test_equal_scores_rank_by_id():
    rank, _ = ranks(jnp.zeros((4, 5)), jnp.asarray([1, 2, 3, 4], jnp.int32))
    np.testing.assert_array_equal(rank, [1, 2, 3, 4])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('item', [1, 3])
def test_a_score_that_is_not_finite_shows_in_its_row_alone(bad, item):
    scores = np.zeros((3, 4), np.float32)
    scores[:, 0] = -np.inf
    scores[1, item] = bad
    _, finite = jax.jit(ranks)(scores, np.asarray([1, 1, 1], np.int32))
    np.testing.assert_array_equal(finite, [True, False, True])


def test_metrics_of_literal_ranks():
    """1 / log2(rank + 1) and 1 / rank up to the cutoff, 0 beyond it."""
    metrics = ranking_metrics(np.asarray([1, 3, 10, 11, 20, 21]))
    assert list(metrics) == ['HR@10', 'NDCG@10', 'MRR@10', 'HR@20', 'NDCG@20', 'MRR@20']
    assert all(type(value) is float for value in metrics.values())
    ndcg_10 = 1 + 0.5 + 0.2890648263178879  # log2(11) = 3.4594316186372973
    ndcg_20 = ndcg_10 + 0.2789429456511298 + 0.22767024869695299  # log2(12), log2(21)
    assert metrics == pytest.approx({
        'HR@10': 3 / 6, 'NDCG@10': ndcg_10 / 6, 'MRR@10': (1 + 1 / 3 + 1 / 10) / 6,
        'HR@20': 5 / 6, 'NDCG@20': ndcg_20 / 6,
        'MRR@20': (1 + 1 / 3 + 1 / 10 + 1 / 11 + 1 / 20) / 6,
    }, rel=1e-14)


@pytest.mark.parametrize('rank, hit_10, hit_20', [(10, 1, 1), (11, 0, 1), (20, 0, 1), (21, 0, 0)])
def test_the_cutoff_itself_is_inside(rank, hit_10, hit_20):
    metrics = ranking_metrics(np.asarray([rank], np.int32))
    assert (metrics['HR@10'], metrics['HR@20']) == (hit_10, hit_20)
    assert (metrics['NDCG@10'] > 0, metrics['MRR@10'] > 0) == (hit_10, hit_10)
    assert (metrics['NDCG@20'] > 0, metrics['MRR@20'] > 0) == (hit_20, hit_20)


def test_metrics_of_many_users_match_gains_over_sorted_lists():
    """The DCG of the relevance vector of each user's sorted list, whose ideal value is 1."""
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((300, 60))
    targets = rng.integers(1, 61, 300)
    order = np.argsort(-scores, axis=1) + 1
    relevant = (order == targets[:, None]).astype(float)
    found = ranking_metrics(np.argmax(relevant, axis=1) + 1)
    for k in (10, 20):
        positions = np.arange(1, k + 1)
        top = relevant[:, :k]
        assert found[f'HR@{k}'] == pytest.approx(top.sum(1).mean(), rel=1e-12)
        dcg = (top / np.log2(positions + 1)).sum(1)
        assert found[f'NDCG@{k}'] == pytest.approx(dcg.mean(), rel=1e-12)
        assert found[f'MRR@{k}'] == pytest.approx((top / positions).sum(1).mean(), rel=1e-12)


def test_recall_and_map_of_literal_lists():
    """Two users with two held-out items each, one of which is listed first, or second and fourth."""
    lists, held_out = np.array([[7, 1, 2, 3], [4, 5, 6, 8]]), [np.array([7, 9]), np.array([8, 5])]
    frame = set_metric_frame(lists, held_out, (1, 4))
    values = dict(zip(frame['metric'], frame['value'], strict=True))
    assert values == pytest.approx({
        'recall@1': (1 / 2 + 0) / 2, 'MAP@1': (1 + 0) / 2,
        'recall@4': (1 / 2 + 1) / 2, 'MAP@4': (1 / 2 + (1 / 2 + 2 / 4) / 2) / 2,
    })
    assert ((frame['low'] <= frame['value']) & (frame['value'] <= frame['high'])).all()


def test_lists_of_the_whole_catalogue_answer_longer_cutoffs():
    frame = set_metric_frame(np.array([[2, 1, 3]]), [np.array([3, 1])], (3, 20))
    values = dict(zip(frame['metric'], frame['value'], strict=True))
    assert values['recall@20'] == values['recall@3'] == 1 and values['MAP@20'] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_the_interval_of_users_with_several_items_is_that_of_drawing_users():
    """Users whose items are all found or none of them: the interval is as wide as if each had a single item."""
    found = np.random.default_rng(0).random(200) < 0.3
    ranks, users = np.repeat(np.where(found, 1, 0), 20), np.repeat(np.arange(200), 20)
    several = metric_frame(ranks, (1,), users=np.random.default_rng(1).permutation(200)[users])
    single = metric_frame(np.where(found, 1, 0), (1,))
    assert several['metric'].to_list() == single['metric'].to_list()
    np.testing.assert_allclose(several['value'], found.mean())
    deviation = np.sqrt(found.mean() * (1 - found.mean()) / 200)
    for frame in (several, single):
        width = np.asarray(frame['high'] - frame['low'])
        np.testing.assert_allclose(width, 2 * 1.96 * deviation, rtol=0.12)
    alike = metric_frame(ranks, (1,))
    assert (np.asarray(alike['high'] - alike['low']) < 0.3 * width).all(), 'drawn one by one they would look certain'


def test_users_of_one_and_of_several_items_weigh_by_their_items():
    ranks, users = np.array([1, 0, 3, 2, 40]), np.array([5, 9, 9, 9, 2])
    frame = metric_frame(ranks, (2, 10), users=users)
    values = dict(zip(frame['metric'], frame['value'], strict=True))
    assert values['HR@2'] == pytest.approx(2 / 5) and values['HR@10'] == pytest.approx(3 / 5)
    assert values['MRR@10'] == pytest.approx((1 + 1 / 3 + 1 / 2) / 5)
    assert values['NDCG@10'] == pytest.approx((1 + 1 / 2 + 1 / np.log2(3)) / 5)
