"""Trainings that stop at a validation goal, and their picture."""
import dataclasses

import pytest

from experiments.bench.time_to_quality import draw_curves, measure_time_to_quality
from ssd4rec_jax.config.run import RunConfig
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset

CONFIG = RunConfig('interactions', MODEL, DATA, dataclasses.replace(TRAIN, max_epochs=2))


def measured(goal):
    return measure_time_to_quality({'one': CONFIG}, tiny_dataset(), goal=goal, minutes=10)['one']


@pytest.mark.slow
def test_a_goal_that_is_reached_ends_the_training():
    found = measured(0.0)
    assert [epoch for _, epoch, _ in found['curve']] == [1]
    assert found['seconds'] == found['curve'][0][0] > 0


@pytest.mark.slow
def test_a_goal_that_is_not_reached(tmp_path):
    found = measured(2.0)
    assert [epoch for _, epoch, _ in found['curve']] == [1, 2] and found['seconds'] is None
    assert found['curve'][0][0] < found['curve'][1][0]
    draw_curves({'one': found, 'none': {'curve': []}, 'two': found}, 2.0, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
