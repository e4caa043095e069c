"""What is kept of one user's history between its events, and its form on a disk."""
import dataclasses

import numpy as np

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.live.held_items import HeldItems

_ARRAYS = {'state': 'f', 'readout': 'f', 'held': 'i', 'items': 'i', 'gaps': 'f', 'counts': 'i'}


@dataclasses.dataclass(eq=False)
class Session:
    """A history as LiveModel needs it to go on; LiveModel alone makes and changes it, and one thread at a time.

    length: how many events with known items there were.
    last_time: when the last of them was, in the unit of the log's times; None where that is not known.
    held: the distinct items.
    items, gaps: the newest events, as internal ids and what the network reads of the time before each (Gaps.numbers):
      as many as the follower term reads or, where the model has to read the history again, all that it reads.
    state: [S], what the network carries; [0] where it carries nothing and reads the history again.
    readout: [D], the network's readout after the last event; [0] likewise.
    """

    length: int
    last_time: float | None
    held: HeldItems
    items: list[int]
    gaps: list[float]
    state: np.ndarray
    readout: np.ndarray

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for safetensors or np.savez; `from_arrays` gives the same bits back."""
        time = np.array(np.nan if self.last_time is None else self.last_time, np.float64)
        return {
            'state': self.state, 'readout': self.readout, 'held': np.ascontiguousarray(self.held.table),
            'items': np.asarray(self.items, np.int32), 'gaps': np.asarray(self.gaps, np.float32),
            'counts': np.array([self.length, time.view(np.int64)], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'Session':
        """The inverse of `to_arrays`; UserError where the arrays are no session's."""
        kinds = {name: np.asarray(array).dtype.kind for name, array in arrays.items()}
        if kinds != _ARRAYS or arrays['counts'].shape != (2,) or arrays['held'].ndim != 2:
            raise UserError(f'these are no arrays of a session ({", ".join(arrays) or "there are none"})')
        length, time = arrays['counts']
        last_time = float(np.array(time, np.int64).view(np.float64))
        return cls(
            int(length), None if np.isnan(last_time) else last_time, HeldItems.of_table(arrays['held']),
            arrays['items'].tolist(), arrays['gaps'].tolist(), np.array(arrays['state']), np.array(arrays['readout']),
        )
