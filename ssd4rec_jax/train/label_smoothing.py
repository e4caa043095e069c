"""Label smoothing: a share of each target's probability is spread evenly over the catalogue."""
import jax
import jax.numpy as jnp

from ssd4rec_jax.model.seen import Bias, Seen
from ssd4rec_jax.parallel.table_shard import TableShard


def smoothing_sum(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, *, seen: tuple[Bias, Seen] | None,
    shard: TableShard,
) -> jax.Array:
    """The sum over the real targets of (target's score - mean score of all rows of the table): a scalar.

    Cross-entropy with targets smoothed by epsilon (Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", 2016) is the plain one plus epsilon times this. Arguments as in
    ssd4rec_jax.train.full_softmax.softmax_loss_sum. Where the table is split, a device's value is the part of the sum
    over all devices that its readouts and its rows give.
    """
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    slots = targets.shape[-1]
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout)).reshape(-1, readout.shape[-1]).astype(wide)
    targets, real = targets.reshape(-1), real.reshape(-1)
    of_targets = jnp.sum(readout * shard.fetch(table, targets).astype(wide))
    is_row = shard.first + jnp.arange(shard.held) < shard.rows
    rows = jnp.sum(jnp.where(is_row[:, None], table, jnp.zeros_like(table)), axis=0, dtype=wide)
    of_all = jnp.sum(shard.gather(jnp.sum(readout, axis=0, keepdims=True)) * rows)
    total = of_targets - of_all / shard.rows
    if seen is None:
        return total
    bias, which = seen[0], seen[1].one_list(slots)

    def weight(readout, item):
        is_target = (item == targets.at[readout].get(mode='fill', fill_value=-1)).astype(wide)
        return jnp.where(real.at[readout].get(mode='fill', fill_value=False), is_target - 1 / shard.rows, 0.0)

    weights = jax.lax.stop_gradient(which.sums(weight, jax.tree.map(lambda a: a.astype(wide), bias)))
    return total + jnp.sum(weights.age * bias.age) + jnp.sum(weights.times * bias.times)
