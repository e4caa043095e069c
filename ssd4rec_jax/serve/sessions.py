"""Live sessions of users who do something: a cache of states, from which the users longest not met are dropped."""
import collections
import contextlib
from collections.abc import Iterable

import numpy as np

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.live import LiveModel
from ssd4rec_jax.serve.histories import Histories
from ssd4rec_jax.serve.model import EVENTS
from ssd4rec_jax.serve.questions import UserSession


class Sessions:
    """The sessions of one model's users. Each can be had again by reading the history, so that none has to be kept.

    An event begins a session or takes it further, at first only as a wish: the thread that computes steps when nobody
    waits for an answer, or before it answers for that user. most: users that are held. Where the model cannot step
    (LiveModel.recomputes) there are none.
    """

    def __init__(self, live: LiveModel, histories: Histories, most: int):
        self._live, self._histories, self.most = live, histories, 0 if live.recomputes else most
        self._held: collections.OrderedDict[str, UserSession] = collections.OrderedDict()
        self._behind: collections.OrderedDict[str, None] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def behind(self) -> bool:
        """Whether any session has events to take."""
        return bool(self._behind)

    # ---- in the event loop

    def follow(self, user: str) -> UserSession | None:
        """The session of a user who has just been met, which begins with the history where it is not held."""
        if not self.most:
            return None
        found = self._held.pop(user, None)
        if found is None:
            found = UserSession(user, self._live.empty())
        self._held[user] = found
        if len(self._held) > self.most:
            dropped, _ = self._held.popitem(last=False)
            self._behind.pop(dropped, None)
        if self._missing(found):
            self._behind[user] = None
        return found

    def near(self, user: str) -> UserSession | None:
        """The session to answer a user with; None where reading the history costs less, or the user has no events."""
        found = self.follow(user) if self._histories.events(user) else None
        return found if found is not None and self._missing(found) <= EVENTS[-1] else None

    def _missing(self, of: UserSession) -> int:
        """How many items of the history the session has not taken, at most."""
        ahead, events = of.ahead, self._histories.events(of.user)
        if ahead is None:
            return self._histories.length(of.user) + events
        return len(ahead.items) + events - ahead.events

    # ---- in the thread that computes

    def advance(self, some: Iterable[UserSession]) -> None:
        """Take the next events of some users, EVENTS[-1] of each at most."""
        moved = []
        for one in dict.fromkeys(some):
            read = self._histories.of(one.user) if one.ahead is None else one.ahead
            assert read is not None
            if one.ahead is not None and self._histories.events(one.user) > read.events:
                read = read + self._histories.since(one.user, read)
            if len(read.items):
                moved.append((one, read))
            one.ahead = read
        taken = [read.items[:EVENTS[-1]] for _, read in moved]
        gaps = [
            read.features.get(TIME_GAP, np.zeros(len(own), np.float32))[:len(own)]
            for (_, read), own in zip(moved, taken, strict=True)
        ]
        self._live.take([one.session for one, _ in moved], taken, gaps, [None] * len(moved))
        for (one, read), own in zip(moved, taken, strict=True):
            one.ahead = read.after(len(own))

    def advance_some(self, most: int) -> bool:
        """The same for users who are behind and for whom nobody waits; False where there was none."""
        some: list[UserSession] = []
        with contextlib.suppress(KeyError):  # The event loop may have taken the last one.
            while len(some) < most:
                user, _ = self._behind.popitem(last=False)
                if (one := self._held.get(user)) is not None:
                    some.append(one)
        self.advance(some)
        for one in some:
            if self._missing(one):
                self._behind[one.user] = None
        return bool(some)
