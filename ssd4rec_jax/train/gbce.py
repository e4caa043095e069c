"""Generalised binary cross-entropy over sampled negatives: what gSASRec trains with.

Petrov and Macdonald, "gSASRec: reducing overconfidence in sequential recommendation trained with negative sampling"
(RecSys 2023): its loss gBCE, with beta as t and the sampling rate give it. The negatives are a step's uniform draws,
train.num_negatives of them, which all targets of the step share; the authors draw as many for each target.
"""
import jax
import jax.numpy as jnp

from ssd4rec_jax.config.loss import GBCE
from ssd4rec_jax.model.scores import scores


def gbce_losses(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, negatives: jax.Array, expected: float,
    probability: jax.Array, *, settings: GBCE,
) -> jax.Array:
    """float32 [rows, slots], the mean over a target and its negatives; 0 where there is no target.

    Arguments as in ssd4rec_jax.train.sampled_softmax.sampled_losses. A target counts as log sigmoid(score)^beta, where
    beta goes from 1 for settings.t = 0 to the sampling rate, which makes scores probabilities, for t = 1.
    """
    del probability
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout))
    beta = expected * (settings.t * (1 - 1 / expected) + 1 / expected)
    own = jnp.einsum('rsd,rsd->rs', readout, jnp.take(table, targets, axis=0).astype(readout.dtype))
    others = scores(readout, jnp.take(table, negatives, axis=0))
    total = beta * jax.nn.log_sigmoid(own.astype(others.dtype)) + jax.nn.log_sigmoid(-others).sum(-1)
    return jnp.where(real, -total / (len(negatives) + 1), 0.0)
