"""Cross-entropy over a sample of the catalogue, for catalogues whose full softmax no step can pay for.

Candidates of a target are the step's uniform negatives and the other targets of its packed row (mixed negative sampling:
Yang et al., WWW 2020). A candidate's score is lowered by the log of how often it is expected among them, which makes the
sum of exponentials an unbiased estimate of the full softmax's (logQ correction: Bengio and Senecal, 2008); the target
itself comes once and uncorrected, and where it is drawn as a candidate it does not count again. In a row, not in a step or on
a device, since rows are what no mesh changes.
"""
import jax
import jax.numpy as jnp

from ssd4rec_jax.model.scores import scores


def draw_negatives(seed, step, count: int, rows: int) -> jax.Array:
    """int32 [count] of a step, uniform with replacement over the table's rows 0 .. rows - 1, as the full softmax is."""
    return jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), (count,), 0, rows, jnp.int32)


def sampled_losses(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, negatives: jax.Array,
    expected: float, probability: jax.Array,
) -> jax.Array:
    """-log of each target's share in its sample, float32 [rows, slots]; 0 where there is no target.

    readout [rows, slots, D], table [n, D] of the rows that occur, targets [rows, slots] and negatives [k] as numbers of
    those rows, real bool [rows, slots]. expected: how often any item is expected among the negatives. probability
    float32 [n]: of each of the rows to be a target.
    """
    def of_row(readout, targets, real):
        readout = jnp.where(real[:, None], readout, jnp.zeros_like(readout))
        candidates = jnp.concatenate([negatives, targets])
        others = jnp.maximum(jnp.sum(real) - 1, 0)
        times = expected + others * probability[candidates]
        logits = scores(readout, table[candidates]) - jnp.log(times)
        drawn = jnp.concatenate([jnp.ones_like(negatives, bool), real])
        logits = jnp.where(drawn & (candidates != targets[:, None]), logits, -jnp.inf)
        own = jnp.einsum('sd,sd->s', readout, table[targets].astype(readout.dtype), preferred_element_type=logits.dtype)
        total = jax.nn.logsumexp(jnp.concatenate([own[:, None], logits], axis=1), axis=1)
        return jnp.where(real, total - own, 0.0)

    return jax.vmap(of_row)(readout, targets, real)
