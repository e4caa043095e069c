"""RecBole's stopping rule, on literal sequences of scores."""
import dataclasses
import json

import pytest

from ssd4rec_jax.train.early_stopping import EarlyStopping


def run(values, patience=10):
    """(state, epochs that improved, epoch that stopped) for the values of successive epochs of 100 steps."""
    state, improved, stopped = EarlyStopping(), [], None
    for epoch, value in enumerate(values, start=1):
        state, better = state.update(value, epoch, 100 * epoch)
        if better:
            improved.append(epoch)
        if stopped is None and state.should_stop(patience):
            stopped = epoch
    return state, improved, stopped


def test_stops_at_the_eleventh_worse_evaluation_in_a_row():
    state, improved, stopped = run([0.5] + [0.4] * 11)
    assert improved == [1] and stopped == 12
    assert state == EarlyStopping(best=0.5, best_epoch=1, best_step=100, worse=11)
    assert run([0.5] + [0.4] * 10)[2] is None


def test_an_equal_score_counts_as_better_and_starts_the_count_anew():
    state, improved, stopped = run([0.5] + [0.4] * 10 + [0.5] + [0.4] * 10)
    assert improved == [1, 12] and stopped is None
    assert state == EarlyStopping(best=0.5, best_epoch=12, best_step=1200, worse=10)


def test_scores_are_compared_at_four_decimals():
    state, improved, _ = run([0.12344, 0.12336, 0.12334, 0.12346])
    assert improved == [1, 2, 4], '0.1234, 0.1234 (equal), 0.1233 (worse), 0.1235'
    assert state == EarlyStopping(best=0.1235, best_epoch=4, best_step=400, worse=0)


def test_worse_is_counted_against_the_best_not_the_one_before():
    assert run([0.5, 0.1, 0.2, 0.3], patience=2)[2] == 4


@pytest.mark.parametrize('patience, stopped', [(0, 2), (1, 3), (3, 5)])
def test_patience(patience, stopped):
    assert run([0.5] + [0.4] * 6, patience)[2] == stopped


def test_the_first_evaluation_is_the_best_even_at_zero():
    assert run([0.0]) == (EarlyStopping(best=0.0, best_epoch=1, best_step=100, worse=0), [1], None)
    assert EarlyStopping().best_step == 0 and not EarlyStopping().should_stop(0)


def test_round_trip_through_json():
    state, _, _ = run([0.1, 0.3, 0.2])
    stored = json.dumps(dataclasses.asdict(state), allow_nan=False)
    assert EarlyStopping(**json.loads(stored)) == state
