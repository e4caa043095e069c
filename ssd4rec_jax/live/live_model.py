"""A saved run that answers while histories grow, in original ids."""
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import polars as pl

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.arguments import listed, truth
from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.data.gaps import Gaps
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.live.held_items import HeldItems
from ssd4rec_jax.live.session import Session
from ssd4rec_jax.live.stepping import EVENTS, SESSIONS, Stepping
from ssd4rec_jax.rank.followers import NEWEST
from ssd4rec_jax.run.saved_run import SavedRun


class LiveModel:
    """Sessions of a saved run: histories that grow by one event at a time, and their best items after each.

    Answers equal those of Recommender.recommend for the whole history, up to rounding. Where the network's prefixes
    share a pass and data.max_history cuts nothing, an event costs one step and a session keeps a fixed state. Elsewhere
    `recomputes` says why the history is read again for each answer. Scoring costs what the catalogue costs, and reading
    what a session holds grows with its distinct items (see docs/live.md).

    sessions, events: the numbers of sessions, and of events of each, that programs are compiled for.
    """

    def __init__(self, saved: SavedRun, *, sessions: tuple[int, ...] = SESSIONS, events: tuple[int, ...] = EVENTS):
        self.saved, self._answers, self._sizes = saved, Answers(saved), (sessions, events)
        self.recomputes = _why_not_steps(saved)
        self._reads_gaps = TIME_GAP in features_read(saved.config.model)
        self._gaps = saved.dataset.measured_gaps() if self._reads_gaps else Gaps(None, 0.0, '')
        self._kept = (saved.config.data.max_history or None) if self.recomputes else NEWEST

    @property
    def time_unit(self) -> str:
        """The unit of the log's times, and so of those of events: 's', 'ms', 'us' or 'ns' since 1970, or ''."""
        return self.saved.dataset.time_unit

    def begin(
        self, histories: Sequence[Sequence[Any]] | None = None, *, users: Sequence[Any] | str | None = None,
        times: Sequence[Sequence[float] | None] | None = None,
    ) -> list[Session]:
        """New sessions of histories of original item ids, or of users of the log with what the log tells of them.

        times: for each history, when each of its events was, in the log's unit; None, also for a single history, makes
        all gaps typical. Histories may be empty. Items and users that the log does not have are left out with a
        warning, UnknownIds.
        """
        if (users is None) == (histories is None):
            raise UserError('give either histories (lists of item ids) or users (ids of the log, or \'all\')')
        if histories is not None:
            sessions = [self.empty() for _ in listed(histories, 'histories')]
            self.extend(sessions, histories, times)
            return sessions
        if times is not None:
            raise UserError('times go with histories: users have those of the log')
        assert users is not None
        at = self._answers.users_at(users)
        _, read, features = self._answers.of_users(at)
        gaps = features.get(TIME_GAP) or [np.zeros(len(own), np.float32) for own in read]
        sessions = [self.empty() for _ in read]
        self.take(sessions, read, gaps, [self._last_time(user) for user in at.tolist()])
        return sessions

    def empty(self) -> Session:
        """A session of nobody, without events."""
        state, readout = (np.zeros(0, np.float32),) * 2 if self.recomputes else self._stepping.empty
        return Session(0, None, HeldItems(), [], [], state, readout)

    def append(
        self, sessions: Sequence[Session], items: Sequence[Any], times: Sequence[float | None] | None = None
    ) -> None:
        """One more event of each session: an original item id and, in the log's unit, its time."""
        items = listed(items, 'items')
        self.extend(sessions, [[item] for item in items], None if times is None else [
            None if time is None else [time] for time in listed(times, 'times')
        ])

    def extend(
        self, sessions: Sequence[Session], histories: Sequence[Sequence[Any]],
        times: Sequence[Sequence[float] | None] | None = None,
    ) -> None:
        """Further events of each session, in time order; arguments as in `begin`. All sessions change, or none does."""
        if len({id(session) for session in sessions}) < len(sessions):
            raise UserError('a session is named twice: give all of its events in one list of `extend`')
        read = self._answers.read_items(histories, 'items')
        given: Sequence[Any] = [None] * len(read) if times is None else listed(times, 'times')
        if not len(sessions) == len(read) == len(given):
            raise UserError(
                f'{len(sessions)} sessions, {len(read)} lists of items and {len(given)} of times: give one of each'
            )
        moments = [_moments(own, len(items)) for own, items in zip(given, read, strict=True)]
        known = [items > 0 for items in read]
        moments = [own[which] for own, which in zip(moments, known, strict=True)]
        read = [items[which] for items, which in zip(read, known, strict=True)]
        before = [np.nan if session.last_time is None else session.last_time for session in sessions]
        gaps = [
            self._gaps.numbers_of(np.diff(own, prepend=last)) for own, last in zip(moments, before, strict=True)
        ]
        self.take(sessions, read, gaps, [
            float(own[-1]) if len(own) and not np.isnan(own[-1]) else None for own in moments
        ])

    def take(
        self, sessions: Sequence[Session], read: Sequence[np.ndarray], gaps: Sequence[np.ndarray],
        times: Sequence[float | None],
    ) -> None:
        """Further events in internal ids, for any of which a session may have none.

        read: for each session int32 [events]. gaps: float32 [events], what the network reads of the time before each
        (Gaps.numbers). times: when the last of them was, in the unit of the log; None where that is not known.
        """
        chosen = [n for n, items in enumerate(read) if len(items)]
        new: list[tuple[np.ndarray, np.ndarray]] = []
        if chosen and not self.recomputes:
            new = self._stepping.extended(
                [sessions[n] for n in chosen], [read[n] for n in chosen], [gaps[n] for n in chosen]
            )
        for place, n in enumerate(chosen):
            session, items = sessions[n], read[n].tolist()
            if new:
                session.state, session.readout = new[place]
            session.held.add(items, session.length)
            session.length, session.last_time = session.length + len(items), times[n]
            for kept, more in ((session.items, items), (session.gaps, gaps[n].tolist())):
                kept += more
                if self._kept:
                    del kept[:-self._kept]

    def recommend(
        self, sessions: Sequence[Session], k: int = 10, *, exclude_seen: bool = False, exclude: Iterable[Any] = (),
        only: Iterable[Any] | None = None,
    ) -> pl.DataFrame:
        """The k best next items of each session: a frame user, rank, item, score, reason (see Recommender.recommend).

        user: the session's number in `sessions`, from 0.
        """
        k, allowed = self._answers.cut_to_catalogue(k), self._answers.allowed(exclude, only)
        some = np.asarray([session.length > 0 for session in sessions], bool)
        asked = [session for session in sessions if session.length]
        left_out = [session.held.items for session in asked] if truth(exclude_seen, 'exclude_seen') else None
        found = self.top(asked, k=k, exclude=left_out, allowed=allowed) if asked else None
        return self._answers.framed(pl.Series('user', range(len(sessions)), pl.Int64), some, k, found, allowed)

    def top(
        self, sessions: Sequence[Session], *, k: int, exclude: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same in internal ids, for sessions that are not empty: see TopItems, whose arguments these are."""
        if not self.recomputes:
            return self._stepping.top(sessions, k=k, exclude=exclude, allowed=allowed)
        histories, features = self._read_again(sessions)
        return self._answers.top(histories, k=k, exclude=exclude, allowed=allowed, features=features)

    def scores(self, sessions: Sequence[Session]) -> np.ndarray:
        """float32 [sessions, items], the scores of all items, for sessions that are not empty; see TopItems.scores."""
        if not self.recomputes:
            return self._stepping.scores(sessions)
        histories, features = self._read_again(sessions)
        return self._answers.top.scores(histories, np.arange(1, self.saved.dataset.num_items + 1), features=features)

    def load(self, arrays: dict[str, np.ndarray]) -> Session:
        """The session whose `to_arrays` these are; UserError where they are of a model of another shape."""
        session = Session.from_arrays(arrays)
        empty = self.empty()
        for name in ('state', 'readout'):
            ours, theirs = getattr(empty, name), getattr(session, name)
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                raise UserError(
                    f'a session of another model: its {name} is {theirs.dtype} {theirs.shape} and not {ours.dtype} '
                    f'{ours.shape}: begin it anew from its history'
                )
        return session

    # ---- within

    @functools.cached_property
    def _stepping(self) -> Stepping:
        saved, device = self.saved, self.saved.mesh.local_devices[0]
        return Stepping(saved.network, _held_whole(saved, device), saved.followers, device, *self._sizes)

    def _read_again(self, sessions: Sequence[Session]) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
        """(internal items, features) of sessions that keep their history."""
        features = {TIME_GAP: [np.asarray(s.gaps, np.float32) for s in sessions]} if self._reads_gaps else {}
        return [np.asarray(s.items, np.int32) for s in sessions], features

    def _last_time(self, user: int) -> float | None:
        """When the last event of the user at a position was, where the log tells."""
        dataset = self.saved.dataset
        if not self._reads_gaps or dataset.times is None or user >= dataset.num_users:
            return None
        return float(dataset.times[dataset.offsets[user + 1] - 1])


def _held_whole(saved: SavedRun, device: jax.Device) -> dict:
    """All parameters: the arrays of a device that holds them whole, else a copy on the host."""
    if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(saved.params)):
        return saved.network.whole(saved.params)
    return jax.tree.map(
        lambda leaf: next(shard.data for shard in leaf.addressable_shards if shard.device == device), saved.params
    )


def _moments(times: Any, events: int) -> np.ndarray:
    """float64 [events], the times that came with a list of events; NaN where none did."""
    if times is None:
        return np.full(events, np.nan)
    try:
        found = np.asarray(listed(times, 'times'), np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (events,):
        raise UserError(f'times of {events} events must be {events} numbers in the unit of the log, not {times!r}')
    return found


def _why_not_steps(saved: SavedRun) -> str:
    """Why the history has to be read again for each answer, as a sentence; '' where it has not."""
    settings, limit = saved.config.model, saved.config.data.max_history
    if limit:
        return f'data.max_history={limit} cuts a history, so that each event moves the first one that is read'
    if not hasattr(saved.network.bind(saved.params), 'prefix_step'):
        return f'the network {settings.name} has no prefix_step'
    if unread := [name for name in features_read(settings) if name != TIME_GAP]:
        return f'a step does not take {unread[0]}, which the network reads of each event'
    if not settings.prefixes_share_a_pass:
        return 'a backward direction below the last layer makes all that is read depend on the last event'
    return ''
