"""How long after the one before it each interaction of a user came, as a number that networks read."""
import dataclasses

import numpy as np

# The most that a gap counts for: three powers of ten above the typical one.
LARGEST = 3.0
SAMPLE = 1 << 20  # interactions, spread evenly over the log, whose gaps give the typical one


@dataclasses.dataclass(frozen=True, eq=False)
class Gaps:
    """The gaps of a log, measured by the typical one.

    times: int64 [events]; None where there are none, as in a model that was saved without histories.
    typical: the median of the gaps in training that are above 0, in the unit of the times; 0 where the times say no
      more than the order, so that every gap counts as the typical one.
    note: what networks read of it, as a sentence.
    """

    times: np.ndarray | None
    typical: float
    note: str

    @classmethod
    def of(
        cls, times: np.ndarray | None, unit: str, offsets: np.ndarray, train_stop: np.ndarray, typical: float = 0.0
    ) -> 'Gaps':
        """The gaps of a log (see SequenceDataset). typical: of the log that a model was trained on first, 0 if none."""
        if times is None:
            return cls(
                None, typical, 'time: the log has no times, so that all gaps between interactions count as equal'
            )
        if not unit:
            return cls(
                times, 0.0, 'time: the times of the log tell the order alone, so that all gaps between interactions '
                'count as equal',
            )
        gaps = _training_gaps(times, offsets, train_stop)
        some = gaps[gaps > 0]
        if not len(some) or gaps.min() == gaps.max():
            return cls(times, 0.0, 'time: all gaps between interactions are equal, so that they tell nothing')
        typical = typical or float(np.median(some))
        return cls(times, typical, f'time: gaps between interactions are read; typically {typical:,.0f} {unit}')

    def numbers(self, events: np.ndarray) -> np.ndarray:
        """float32, log10 of ((1 + gap / typical) / 2), at most LARGEST, at some positions: 0 for the typical gap.

        The number of the first interaction of a history means nothing.
        """
        if self.times is None or not self.typical:
            return np.zeros(len(events), np.float32)
        return self.numbers_of(self.times.take(events, mode='clip') - self.times.take(events - 1, mode='clip'))

    def numbers_of(self, gaps: np.ndarray) -> np.ndarray:
        """The same for gaps in the unit of the times, whoever's they are; NaN where one is not known gives 0."""
        if not self.typical:
            return np.zeros(len(gaps), np.float32)
        numbers = np.log10((1 + np.maximum(gaps, 0) / self.typical) / 2)
        return np.where(np.isnan(numbers), 0, np.minimum(numbers, LARGEST)).astype(np.float32)


def _training_gaps(times: np.ndarray, offsets: np.ndarray, train_stop: np.ndarray) -> np.ndarray:
    """int64, the gaps that training reads, or an even sample of them."""
    events = np.arange(0, len(times), max(1, len(times) // SAMPLE))
    user = np.searchsorted(offsets, events, side='right') - 1
    events = events[(events > offsets[user]) & (events < train_stop[user])]
    return np.asarray(times[events]) - np.asarray(times[events - 1])
