"""The bytes that devices send one another, counted by hand for a step with one layer of width 16."""
import dataclasses

import pytest

from experiments.bench.weak_scaling import SEGMENTS, TOKENS, measure_weak_scaling
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.presets import default_config

pytestmark = pytest.mark.slow

CONFIG = dataclasses.replace(
    default_config('kuairand'), model=ModelConfig(hidden_size=16, num_layers=1, d_state=8, headdim=8)
)
LARGE = 200_000


@pytest.fixture(scope='module')
def steps():
    forms = ('full', 7_111, False), ('full', LARGE, True), ('sampled', LARGE, True)
    return {(s['loss'], s['items'], s['devices']): s for s in measure_weak_scaling(CONFIG, forms, counts=(1, 4))}


def test_one_device_sends_nothing(steps):
    assert [s['sent_bytes'] for s in steps.values() if s['devices'] == 1] == [0, 0, 0]


def test_repeated_parameters_cost_an_all_reduce_of_their_gradients(steps):
    step = steps['full', 7_111, 4]
    assert set(step['by_kind']) == {'all-reduce'}
    parameters = step['state_bytes'] / 3  # The state also holds Adam's two moments.
    assert step['sent_bytes'] == pytest.approx(2 * 3 / 4 * parameters, rel=0.01)


def test_a_shared_table_is_sent_in_no_part_of_its_own_size(steps):
    full, sampled = steps['full', LARGE, 4], steps['sampled', LARGE, 4]
    assert full['state_bytes'] == pytest.approx(steps['full', LARGE, 1]['state_bytes'] / 4, rel=0.05)
    # One vector of 16 float32 for each token, readout and negative of the step.
    vectors = 4 * (1 + TOKENS + SEGMENTS + CONFIG.train.num_negatives) * 16 * 4
    assert 0 < full['sent_bytes'] < vectors < LARGE * 16 * 4 / 2
    assert 0.5 * vectors < sampled['sent_bytes'] < 4 * vectors
