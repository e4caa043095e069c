"""Softmax cross-entropy over a target and a few uniform negatives, with no correction: what HSTU trains with.

Zhai et al., "Actions speak louder than words" (ICML 2024), in the form of the released code
(github.com/facebookresearch/generative-recommenders, losses/sampled_softmax.py): a negative that is the target does not
count. The authors draw loss.negatives for each target. Here all targets of a step share train.num_negatives uniform
draws, whose mean, as many times, takes the place of the sum over theirs: the less noise, the larger the shared sample.
"""
import math

import jax
import jax.numpy as jnp

from ssd4rec_jax.config.loss import UniformSoftmax
from ssd4rec_jax.model.scores import scores


def uniform_losses(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, negatives: jax.Array, expected: float,
    probability: jax.Array, *, settings: UniformSoftmax,
) -> jax.Array:
    """float32 [rows, slots], -log of the target's share of the softmax; 0 where there is no target.

    Arguments as in ssd4rec_jax.train.sampled_softmax.sampled_losses.
    """
    del expected, probability
    own, others = target_and_negatives(readout, table, targets, real, negatives)
    others = jnp.where(negatives == targets[..., None], jnp.finfo(others.dtype).min, others)
    each = math.log((settings.negatives or len(negatives)) / len(negatives))
    return jnp.where(real, jnp.logaddexp(own, jax.nn.logsumexp(others, axis=-1) + each) - own, 0.0)


def target_and_negatives(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, negatives: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The score of each target [rows, slots] and those of the negatives [rows, slots, k]; 0 where there is no target.

    Arguments as in ssd4rec_jax.train.sampled_softmax.sampled_losses.
    """
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout))
    others = scores(readout, jnp.take(table, negatives, axis=0))
    of_targets = jnp.take(table, targets, axis=0).astype(readout.dtype)
    return jnp.einsum('rsd,rsd->rs', readout, of_targets, preferred_element_type=others.dtype), others
