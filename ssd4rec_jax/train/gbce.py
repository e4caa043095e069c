"""Generalised binary cross-entropy over sampled negatives: what gSASRec trains with.

Petrov and Macdonald, "gSASRec: reducing overconfidence in sequential recommendation trained with negative sampling"
(RecSys 2023): its loss gBCE, with beta as t and the sampling rate give it. The authors draw loss.negatives for each
target. Here all targets of a step share train.num_negatives uniform draws, whose mean takes the place of theirs: the
same loss on average, and with less noise the larger the shared sample is.
"""
import jax
import jax.numpy as jnp

from ssd4rec_jax.config.loss import GBCE
from ssd4rec_jax.train.uniform_softmax import target_and_negatives


def gbce_losses(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, negatives: jax.Array, expected: float,
    probability: jax.Array, *, settings: GBCE,
) -> jax.Array:
    """float32 [rows, slots], the mean over a target and its negatives; 0 where there is no target.

    Arguments as in ssd4rec_jax.train.sampled_softmax.sampled_losses. A target counts as log sigmoid(score)^beta, where
    beta goes from 1 for settings.t = 0 to the sampling rate, which makes scores probabilities, for t = 1.
    """
    del probability
    own, others = target_and_negatives(readout, table, targets, real, negatives)
    count = settings.negatives or len(negatives)
    rate = expected * count / len(negatives)
    beta = rate * (settings.t * (1 - 1 / rate) + 1 / rate)
    total = beta * jax.nn.log_sigmoid(own) + count * jax.nn.log_sigmoid(-others).mean(-1)
    return jnp.where(real, -total / (count + 1), 0.0)
