"""What the measurement of new items asks, on a literal log."""
import numpy as np

from experiments import new_items
from ssd4rec_jax.data.dataset import SequenceDataset


def test_questions_begin_after_the_first_interactions_and_histories_hold_what_has_a_vector(monkeypatch):
    monkeypatch.setattr(new_items, 'FIRST', 1)
    histories = [[1, 5, 2], [3, 5, 1], [5, 3], [4, 6, 1, 5]]  # 5 and 6 are new; 6 is met only once
    times = [0, 1, 2, 10, 11, 12, 20, 21, 30, 31, 32, 33]
    dataset = SequenceDataset(
        name='literal', items=np.concatenate(histories).astype(np.int32), offsets=np.array([0, 3, 6, 8, 12]),
        user_ids=np.arange(4), item_ids=np.arange(6), fingerprint='literal', times=np.array(times),
    )
    new = np.array([False] * 5 + [True] * 2)
    beside, questions = new_items._questions(dataset, new)
    assert beside == {'i5': ['i1', 'i2']}
    # User 2 did nothing before, and what user 3 did with 6 tells nothing.
    assert questions == [(['i3'], 'i5'), (['i4', 'i1'], 'i5')]
