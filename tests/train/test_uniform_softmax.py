"""The softmax over uniform negatives and its gradient, compared with their formulas in NumPy, one target at a time."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.config.loss import UniformSoftmax
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.train.uniform_softmax import target_and_negatives, uniform_losses


@pytest.mark.parametrize('count', [0, 2, 15])
def test_losses_of_targets_and_nothing_in_empty_slots(x64, count):
    """A negative that is the target does not count; where all of them are, the loss is 0. The five draws count as 15
    where each of them stands for three, and as 2 where it stands for two fifths of one."""
    rng = np.random.default_rng(0)
    readout, table = rng.normal(size=(2, 3, 4)), rng.normal(size=(9, 4))
    real = np.array([[1, 1, 0], [1, 0, 0]], bool)
    readout[~real] = np.nan

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(readout, targets, negatives):
        found = uniform_losses(
            readout, table, targets, real, negatives, 0.2, np.ones(9) / 9, settings=UniformSoftmax(count)
        )
        return found.sum(), found

    for targets, negatives in (
        (np.array([[3, 5, 1], [2, 4, 4]]), np.array([3, 3, 8, 0, 5])), (np.full((2, 3), 7), np.full(5, 7)),
    ):
        (_, found), gradient = loss(readout, targets, negatives)
        for row, slot in np.ndindex(2, 3):
            if not real[row, slot]:
                assert found[row, slot] == 0 and (np.asarray(gradient)[row, slot] == 0).all()
                continue
            target = targets[row, slot]
            items = np.array([target, *negatives[negatives != target]])
            weights = np.exp(table[items] @ readout[row, slot])
            weights[1:] *= (count or 5) / 5
            share = weights / weights.sum()
            np.testing.assert_allclose(found[row, slot], -np.log(share[0]), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(gradient[row, slot], share @ table[items] - table[target], atol=1e-12)


def test_a_negative_number_of_negatives_is_refused():
    with pytest.raises(ConfigError, match='loss.negatives=-1 must be 0 or more'):
        UniformSoftmax(-1)


def test_bfloat16_readouts_score_a_target_as_they_score_a_negative():
    """HSTU's temperature makes scores near 18, of which bfloat16 would leave three digits."""
    rng = np.random.default_rng(0)
    readout, table = (jnp.asarray(4 + rng.normal(size=size), jnp.bfloat16) for size in ((1, 2, 16), (5, 16)))
    targets = jnp.asarray([[3, 1]])
    own, others = target_and_negatives(readout, table, targets, jnp.ones((1, 2), bool), targets[0])
    assert own.dtype == others.dtype == jnp.float32
    exact = np.einsum('sd,sd->s', *(np.asarray(a, np.float64) for a in (readout[0], table[targets[0]])))
    np.testing.assert_allclose(own[0], exact, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(others[0]), exact, rtol=1e-6)
