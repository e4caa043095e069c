"""Cross-entropy over a sample of the catalogue, for catalogues that are too large for a full softmax.

The candidates for a target are the step's uniform negatives and the other targets of its packed row (mixed negative
sampling: Yang et al., WWW 2020). The targets of the row are taken, and not those of the step or of the device, because
rows are the same on every mesh. A candidate's score is lowered by the log of how often the candidate is expected in the
sample, which makes the sum of exponentials an unbiased estimate of the full one (logQ correction: Bengio and Senecal,
2008). The target itself enters once and uncorrected, however often it was drawn.
"""
import chex
import jax
import jax.numpy as jnp

from ssd4rec_jax.model.scores import scores
from ssd4rec_jax.model.seen import Bias, Seen, add_seen


def draw_negatives(seed: jax.typing.ArrayLike, step: jax.typing.ArrayLike, count: int, rows: int) -> jax.Array:
    """The negatives of a step, int32 [count].

    They are drawn uniformly, with replacement, from the rows 0 .. rows - 1, over which the full softmax also goes.
    """
    return jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), (count,), 0, rows, jnp.int32)


def sampled_losses(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, negatives: jax.Array,
    expected: float, probability: jax.Array, *, seen: tuple[Bias, Seen] | None = None,
) -> jax.Array:
    """-log of each target's share of the softmax over its sample, float32 [rows, slots]; 0 where there is no target.

    readout: [rows, slots, D]. table: [n, D], the rows of the item table that the step touches.
    targets: int32 [rows, slots], as rows of `table`. real: bool [rows, slots], False where there is no target.
    negatives: int32 [k], as rows of `table`. expected: how often any one item is expected among the negatives.
    probability: float32 [n], the probability of each row of `table` to be a target.
    seen: which of the scores of the rows of `table` get which bias.
    """
    chex.assert_rank([readout, table, negatives], [3, 2, 1])
    chex.assert_shape(readout, (*targets.shape, table.shape[1]))
    chex.assert_equal_shape([targets, real])
    chex.assert_shape(probability, (len(table),))

    def scored(readout, targets, real):
        """The candidates of a row, their scores, and how often each was drawn."""
        readout = jnp.where(real[:, None], readout, jnp.zeros_like(readout))
        drawn = jnp.concatenate([negatives, jnp.where(real, targets, len(table))])
        # Each candidate has one column. Columns that are left over were drawn 0 times.
        candidates, drawn = jnp.unique(drawn, size=len(drawn), fill_value=len(table), return_counts=True)
        logits = scores(readout, jnp.take(table, candidates, axis=0, mode='clip'))
        return candidates, logits, jnp.where(candidates < len(table), drawn, 0)

    def of_row(candidates, logits, drawn, targets, real):
        others = jnp.maximum(jnp.sum(real) - 1, 0)
        times = expected + others * jnp.take(probability, candidates, mode='clip')
        slot, own = jnp.arange(len(targets)), jnp.searchsorted(candidates, targets)
        own_logit = logits[slot, own]
        logits = (logits + jnp.log(drawn / times)).at[slot, own].set(own_logit)
        return jnp.where(real, jax.nn.logsumexp(logits, axis=1) - own_logit, 0.0)

    candidates, logits, drawn = jax.vmap(scored)(readout, targets, real)
    if seen is not None:
        bias, of_rows = seen
        columns = jax.vmap(lambda own, candidates: own.at_columns(candidates, len(table)))(of_rows, candidates)
        flat = logits.reshape(-1, logits.shape[-1])
        logits = add_seen(flat, bias, columns.one_list(targets.shape[1])).reshape(logits.shape)
    return jax.vmap(of_row)(candidates, logits, drawn, targets, real)
