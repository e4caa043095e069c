"""What was read of a user, what the model is asked, and what it answers, in internal numbers of items."""
import dataclasses
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.live import Session


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """A part of a user's history.

    items: int32 [n], internal ids in time order. features: {name: float32 [n]} that the network reads beside them.
    events: how many of the user's events in the log it reaches to. last: when the last item was, in the unit of the
    model's data; None where that is not known.
    """

    items: np.ndarray
    features: dict[str, np.ndarray]
    events: int
    last: int | None

    def __add__(self, later: 'Read') -> 'Read':
        """This part and the one that follows it."""
        if not len(self.items):
            return later
        return dataclasses.replace(
            later, items=np.concatenate([self.items, later.items]),
            features={name: np.concatenate([values, later.features[name]]) for name, values in self.features.items()},
        )

    def after(self, taken: int) -> 'Read':
        """What is left of it after its first items."""
        return dataclasses.replace(
            self, items=self.items[taken:], features={name: values[taken:] for name, values in self.features.items()}
        )


@dataclasses.dataclass(eq=False)
class UserSession:
    """A user's session, which the computing thread alone changes.

    ahead: what was read of the history and is not yet in the session; None before anything was read.
    """

    user: str
    session: Session
    ahead: Read | None = None


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Question:
    """One history, read or as a session, and what is wanted of it.

    history: int32 [n], internal ids in time order; empty where nothing is known or where there is a session. features:
    {name: float32 [n]} that the network reads beside them. k: how many items. exclude: internal ids that are not
    answered; with exclude_seen none of the history is, either. only: those that alone may be; None allows all.
    of: whose session answers; None where the history does.
    """

    history: np.ndarray
    features: dict[str, np.ndarray]
    k: int
    exclude: frozenset[int] = frozenset()
    exclude_seen: bool = False
    only: frozenset[int] | None = None
    of: UserSession | None = None

    @property
    def seen(self) -> np.ndarray:
        """int32, the items of the history; those of a session each once."""
        return self.history if self.of is None else self.of.session.held.items

    @property
    def left_out(self) -> frozenset[int]:
        """Internal ids that are not answered."""
        return self.exclude.union(self.seen.tolist()) if self.exclude_seen else self.exclude


class Best(NamedTuple):
    """The best items of a history, the first one first.

    items: internal ids. scores: of the model; counts where by_model is False, which is so for a history without items.
    seen: the items of the history that was read.
    """

    items: list[int]
    scores: list[float]
    by_model: bool
    seen: np.ndarray
