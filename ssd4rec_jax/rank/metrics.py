"""Ranks over the whole catalogue, and the metrics that are computed from them."""
import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.rank.excluded import without

CUTOFFS = (10, 20)


def ranks(
    scores: jax.Array, targets: jax.Array, excluded: jax.Array | None = None, *, shard: TableShard | None = None
) -> tuple[jax.Array, jax.Array]:
    """The rank of each row's target among items 1 .. V-1, and whether all scores of the row are finite.

    scores: float32 [n, V], one column per item; column 0, the mask item, takes no part. targets: int32 [n], 1 .. V-1.
    excluded: int32 [n, m], ids of items that are left out of the row's ranking, filled up with 0; a target among them
    ranks after all items that are not left out. shard: where it is given, scores [n, held] are those of this device's
    items, for the readouts of all devices.
    Returns (rank int32 [n], finite bool [n]), with rank = 1 + the number of items with a higher score + the number of
    items with an equal score and a lower id (RecBole leaves ties undefined). Where finite is False the rank is
    meaningless.
    """
    chex.assert_rank([scores, targets], [2, 1])
    chex.assert_equal_shape_prefix([scores, targets], 1)
    shard = shard or TableShard(scores.shape[1])
    item = shard.first + jnp.arange(scores.shape[1], dtype=targets.dtype)
    ranked = (item > 0) & (item < shard.rows)
    odd = shard.sum(jnp.sum(~jnp.isfinite(scores) & ranked, axis=1, dtype=jnp.int32))
    if excluded is not None:
        scores = without(scores, excluded, shard)
    at, here = shard.find(targets)
    own_score = jnp.take_along_axis(scores, at[:, None], axis=1, mode='clip')
    target_score = shard.sum(jnp.where(here[:, None], own_score, 0.0))
    before = (scores > target_score) | ((scores == target_score) & (item < targets[:, None]))
    rank = 1 + shard.sum(jnp.sum(before & ranked, axis=1, dtype=jnp.int32))
    return rank, odd == 0


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """HR, NDCG and MRR at 10 and 20 for one relevant item per user, by RecBole's definitions.

    ranks: int [users], counted from 1. Returns {'HR@10': mean over the users, ...}.
    """
    metrics = {}
    rank = np.asarray(ranks, np.float64)
    for k in CUTOFFS:
        hit = rank <= k
        metrics[f'HR@{k}'] = float(hit.mean())
        metrics[f'NDCG@{k}'] = float(np.where(hit, 1 / np.log2(rank + 1), 0.0).mean())
        metrics[f'MRR@{k}'] = float(np.where(hit, 1 / rank, 0.0).mean())
    return metrics
