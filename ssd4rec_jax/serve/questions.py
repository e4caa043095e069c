"""What the model is asked for one history, and what it answers, in internal numbers of items."""
import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Question:
    """One history and what is wanted of it.

    history: int32 [n], internal ids in time order; empty where nothing is known. features: {name: float32 [n]} that the
    network reads beside them. k: how many items. left_out: internal ids that are not answered. only: those that alone
    may be; None allows all.
    """

    history: np.ndarray
    features: dict[str, np.ndarray]
    k: int
    left_out: frozenset[int] = frozenset()
    only: frozenset[int] | None = None


class Best(NamedTuple):
    """The best items of a history, the first one first.

    items: internal ids. scores: of the model; counts where by_model is False, which is so for a history without items.
    """

    items: list[int]
    scores: list[float]
    by_model: bool
