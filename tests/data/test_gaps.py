"""Gaps between interactions: their numbers by hand, what measures them, and logs that have none."""
import dataclasses

import numpy as np
import pytest

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, save_dataset, with_features
from ssd4rec_jax.data.examples import test_examples as held_out_tests
from ssd4rec_jax.data.examples import train_examples, train_histories, valid_examples
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.features import Feature
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.packing import StepShape, build_step, plan_epoch
from ssd4rec_jax.errors import ConfigError

# Leave-one-out keeps the last two of a user out of training. So training reads the gaps 10, 30, 0, 5 and 1000, whose
# typical one, the median of those above 0, is 20.
TIMES = [[100, 110, 140, 140, 10**6, 10**7], [50, 55, 1055, 1055, 5000]]
TYPICAL = 20.0


def dataset(times=TIMES, unit='s'):
    lengths = [len(own) for own in times]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SequenceDataset(
        name='x', items=np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets=offsets,
        user_ids=np.arange(len(times)), item_ids=np.arange(offsets[-1]), fingerprint='x',
        times=None if times is None else np.concatenate(times).astype(np.int64), time_unit=unit,
    )


def number(gap, typical=TYPICAL):
    return min(np.log10((1 + gap / typical) / 2), 3.0)


def batch(index):
    plan = plan_epoch(index.lengths, StepShape(1, 64, 32), seed=0, epoch=0, shuffle=False)
    return build_step(index, plan, 0)


def test_the_numbers_of_gaps_by_hand():
    data = with_features(dataset(), [TIME_GAP])
    assert data.gaps.typical == TYPICAL and data.gaps.note.endswith('typically 20 s')
    found = batch(held_out_tests(data))
    real, first = found.segment_ids[0] > 0, np.isin(np.arange(64), found.starts[0, :2])
    wanted = [number(gap) for gap in (10, 30, 0, 999860, 5, 1000, 0)]
    np.testing.assert_allclose(found.features[TIME_GAP][0][real & ~first], wanted, rtol=1e-6)
    assert found.features[TIME_GAP].dtype == np.float32 and (found.features[TIME_GAP][0][~real] == 0).all()
    assert number(TYPICAL) == 0 and number(999860) == 3.0


@pytest.mark.parametrize('examples', [train_examples, train_histories, valid_examples, held_out_tests])
def test_the_time_of_a_target_is_not_read(examples):
    """Times of what is predicted, and of all after it, can be anything: no number that is read changes."""
    changed = [[*own[:-2], *late] for own, late in zip(TIMES, ([2 * 10**6, 9 * 10**8], [10**4, 10**5]), strict=True)]
    if examples is held_out_tests:  # which reads the validation item
        changed = [[*own[:-1], 9 * 10**8] for own in TIMES]
    there, here = (batch(examples(with_features(dataset(times), [TIME_GAP]))) for times in (TIMES, changed))
    for a, b in ((there.items, here.items), (there.features[TIME_GAP], here.features[TIME_GAP])):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('times, unit, said', [
    (TIMES, '', 'the times of the log tell the order alone'),
    ([[0, 60, 120, 180, 240], [60, 120, 180, 999]], 's', 'all gaps between interactions are equal'),
    ([[5, 5, 5, 9], [7, 7, 8]], 's', 'all gaps between interactions are equal'),
])
def test_times_that_tell_nothing_are_said_to(times, unit, said):
    data = with_features(dataset(times, unit), [TIME_GAP])
    assert said in data.gaps.note
    assert (batch(held_out_tests(data)).features[TIME_GAP] == 0).all()


def test_a_log_without_times_has_typical_gaps_alone():
    data = with_features(dataclasses.replace(dataset(), times=None, time_unit=''), [TIME_GAP])
    assert 'the log has no times' in data.gaps.note and (batch(held_out_tests(data)).features[TIME_GAP] == 0).all()


def test_columns_stand_beside_gaps():
    data = dataclasses.replace(dataset(), features={'price': Feature(np.arange(11))})
    assert set(with_features(data, ['price', TIME_GAP]).values_read) == {'price', TIME_GAP}
    assert set(with_features(data, [TIME_GAP]).values_read) == {TIME_GAP} and with_features(data, []).values_read == {}
    with pytest.raises(ConfigError, match='the network reads the feature colour'):
        with_features(data, ['colour', TIME_GAP])


def test_a_log_that_grew_measures_by_what_it_was_first_measured_by(tmp_path):
    more = Interactions(
        users=np.zeros(4, np.int64), items=np.zeros(4, np.int64), times=10**7 + 500 * np.arange(4), source='more',
        time_unit='s',
    )
    grown = extended(dataset(), more)
    assert grown.measured_gaps().typical == TYPICAL
    assert dataclasses.replace(grown, typical_gap=0.0).measured_gaps().typical > TYPICAL
    save_dataset(grown, tmp_path / 'prepared')
    assert open_dataset(tmp_path / 'prepared').measured_gaps().typical == TYPICAL
    assert extended(grown, more).typical_gap == TYPICAL
