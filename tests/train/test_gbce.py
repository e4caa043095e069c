"""Generalised binary cross-entropy and its gradient, compared with the formula of its released code in NumPy."""
import jax
import numpy as np
import pytest

from ssd4rec_jax.config.loss import GBCE
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.train.gbce import gbce_losses


def by_hand(positive, negatives, alpha, t):
    """What the released training loop computes from the scores of a target and of its negatives."""
    beta = alpha * ((1 - 1 / alpha) * t + 1 / alpha)
    adjusted = (1 / (1 + np.exp(-positive)))**-beta
    logits = np.array([np.log(1 / (adjusted - 1)), *negatives])
    wanted = np.array([1.0] + [0.0] * len(negatives))
    probability = 1 / (1 + np.exp(-logits))
    return -np.mean(wanted * np.log(probability) + (1 - wanted) * np.log(1 - probability))


@pytest.mark.parametrize('t', [0.0, 0.75, 1.0])
def test_losses_of_targets_and_nothing_in_empty_slots(x64, t):
    rng = np.random.default_rng(0)
    readout, table = rng.normal(size=(2, 3, 4)), rng.normal(size=(9, 4))
    targets, real = rng.integers(1, 9, (2, 3)), np.array([[1, 1, 0], [1, 0, 0]], bool)
    negatives = np.array([3, 3, 8, 0, 5])
    readout[~real] = np.nan

    def loss(readout):
        found = gbce_losses(readout, table, targets, real, negatives, 0.2, np.ones(9) / 9, settings=GBCE(t))
        return found.sum(), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(readout)
    for row, slot in np.ndindex(2, 3):
        if real[row, slot]:
            scores = table @ readout[row, slot]
            wanted = by_hand(scores[targets[row, slot]], scores[negatives], 0.2, t)
            np.testing.assert_allclose(found[row, slot], wanted, rtol=1e-9)
            for place, step in enumerate(1e-6 * np.eye(4)):
                ahead, behind = (table @ (readout[row, slot] + way * step) for way in (1, -1))
                change = [by_hand(one[targets[row, slot]], one[negatives], 0.2, t) for one in (ahead, behind)]
                assert gradient[row, slot, place] == pytest.approx((change[0] - change[1]) / 2e-6, abs=1e-8)
        else:
            assert found[row, slot] == 0 and (np.asarray(gradient)[row, slot] == 0).all()


def test_a_large_shared_sample_counts_as_so_many_negatives_of_each_target(x64):
    """Its loss is the mean of the released one over all draws of two negatives from the sample."""
    rng = np.random.default_rng(1)
    readout, table = rng.normal(size=(1, 1, 4)), rng.normal(size=(9, 4))
    sample, targets, scores = np.array([3, 8, 0, 5]), np.array([[2]]), table @ readout[0, 0]
    found = gbce_losses(
        readout, table, targets, targets > 0, sample, 4 / 9, np.ones(9) / 9, settings=GBCE(0.75, negatives=2)
    )
    wanted = np.mean([by_hand(scores[2], scores[[a, b]], 2 / 9, 0.75) for a in sample for b in sample])
    assert float(found[0, 0]) == pytest.approx(wanted, rel=1e-9)


def test_a_negative_number_of_negatives_is_refused():
    with pytest.raises(ConfigError, match='loss.negatives=-1 must be 0 or more'):
        GBCE(negatives=-1)


def test_a_calibration_outside_0_and_1_is_refused():
    with pytest.raises(ConfigError, match='loss.t=1.5 must be between 0 and 1'):
        GBCE(1.5)
