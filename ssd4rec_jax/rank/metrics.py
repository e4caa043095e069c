"""Ranks over the whole catalogue, and the metrics made of them."""
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.parallel.table_shard import TableShard

CUTOFFS = (10, 20)


def ranks(scores: jax.Array, targets: jax.Array, *, shard: TableShard | None = None) -> tuple[jax.Array, jax.Array]:
    """Rank of each row's target among items 1 .. V-1, and whether all of the row's scores are finite.

    scores float32 [n, V], column 0 (the mask item) takes no part; targets int32 [n], 1 .. V-1. shard: the scores are
    those of a device's part of the items, for the readouts of all devices.
    Returns (rank int32 [n], finite bool [n]). rank = 1 + items with a higher score + items of equal score and
    lower id (RecBole leaves ties undefined). A rank is meaningless where finite is False.
    """
    shard = shard or TableShard(scores.shape[1])
    item = shard.first + jnp.arange(scores.shape[1], dtype=targets.dtype)
    at, here = shard.find(targets)
    own_score = jnp.take_along_axis(scores, at[:, None], axis=1, mode='clip')
    target_score = shard.sum(jnp.where(here[:, None], own_score, 0.0))
    before = (scores > target_score) | ((scores == target_score) & (item < targets[:, None]))
    ranked = (item > 0) & (item < shard.rows)
    rank = 1 + shard.sum(jnp.sum(before & ranked, axis=1, dtype=jnp.int32))
    odd = shard.sum(jnp.sum(~jnp.isfinite(scores) & ranked, axis=1, dtype=jnp.int32))
    return rank, odd == 0


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """HR, NDCG and MRR at 10 and 20 of int ranks [users] from 1; one relevant item a user (RecBole's definitions)."""
    metrics = {}
    rank = np.asarray(ranks, np.float64)
    for k in CUTOFFS:
        hit = rank <= k
        metrics[f'HR@{k}'] = float(hit.mean())
        metrics[f'NDCG@{k}'] = float(np.where(hit, 1 / np.log2(rank + 1), 0.0).mean())
        metrics[f'MRR@{k}'] = float(np.where(hit, 1 / rank, 0.0).mean())
    return metrics
