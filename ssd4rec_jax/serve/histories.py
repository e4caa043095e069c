"""What is known of each user: what the model's data holds, and then the events that came since."""
import collections
import functools
from collections.abc import Iterable

import numpy as np

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.ids import IdIndex
from ssd4rec_jax.serve.event_log import Event
from ssd4rec_jax.serve.model import Model
from ssd4rec_jax.serve.questions import Read
from ssd4rec_jax.serve.search import Search

_PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}


class NewEvents:
    """The events of the log by user, in the order in which they came."""

    def __init__(self, events: Iterable[Event] = ()):
        self._of: dict[str, list[Event]] = collections.defaultdict(list)
        self.count = 0
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        """Take in events that the log holds."""
        for event in events:
            self._of[event.user].append(event)
            self.count += 1

    def of(self, user: str) -> list[Event]:
        """A user's events, which the caller must not change."""
        return self._of.get(user, [])

    @property
    def users(self) -> list[str]:
        """All who have one, the latest to come first."""
        return [*reversed(self._of)]


class Histories:
    """Histories of users as one model reads them."""

    def __init__(self, model: Model, new: NewEvents):
        self._model, self._new = model, new
        self._dataset = model.answers.dataset
        self._numbers, self._ids = UserNumbers(model), model.answers.user_ids

    @property
    def num_users(self) -> int:
        """Those of the model's data, and those who are known by events alone."""
        return len(self._ids) + sum(self._numbers.get(user) is None for user in self._new.users)

    def find(self, part: str, limit: int) -> list[str]:
        """Users whose id holds a part, those with new events first; without a part a sample, spread over all."""
        new = [user for user in self._new.users if part.lower() in user.lower()][:limit]
        if part:
            others = [str(self._ids[at]) for at in self._search.find(part, limit)]
        else:
            others = [str(id_) for id_ in self._ids.gather_every(max(1, len(self._ids) // limit))]
        return list(dict.fromkeys([*new, *others]))[:limit]

    @functools.cached_property
    def _search(self) -> Search:
        return Search([str(id_) for id_ in self._ids.to_list()], range(len(self._ids)))

    def key(self, user: int | str) -> str:
        """The text that stands for a user in the log of events, however the id was written."""
        return self._numbers.key(user)

    def events(self, user: str) -> int:
        """How many events of a user the log holds."""
        return len(self._new.of(user))

    def length(self, user: str) -> int:
        """How many items of a user the model's data holds."""
        number = self._numbers.get(user)
        return 0 if number is None else len(self._model.answers.history(number))

    def of(self, user: str) -> Read | None:
        """The whole history; None where nobody knows the user.

        user: as `key` gives it. Events that the model's data holds already, of the same item at the same time, count
        once. Events with items that the model does not have are left out.
        """
        number, answers = self._numbers.get(user), self._model.answers
        if number is None and not self.events(user):
            return None
        times = self._times(number)
        there = Read(
            np.zeros(0, np.int32) if number is None else answers.history(number),
            {
                name: np.zeros(0, np.float32) if number is None else answers.feature(name, number)
                for name in self._model.features
            },
            0, int(times[-1]) if len(times) else None,
        )
        return there + self.since(user, there) if self.events(user) else there

    def since(self, user: str, read: Read) -> Read:
        """What came after the last part that was read of a user."""
        events, number = self._new.of(user), self._numbers.get(user)
        stop = len(events)
        times = self._times(number)
        history = np.zeros(0, np.int32) if number is None else self._model.answers.history(number)
        items, moments = [], []
        for event in events[read.events:stop]:
            at, moment = self._model.item_numbers.get(event.item), self._in_unit(event.time)
            same = slice(*(np.searchsorted(times, moment, side) for side in ('left', 'right')))
            if at is not None and at + 1 not in history[same]:
                items.append(at + 1)
                moments.append(moment)
        return Read(
            np.asarray(items, np.int32),
            {name: self._feature(name, read.last, moments) for name in self._model.features},
            stop, moments[-1] if moments else read.last,
        )

    def _times(self, number: int | None) -> np.ndarray:
        """int64, the times of a user's events in the model's data; empty where there are none or they tell no more
        than the order."""
        dataset = self._dataset
        if number is None or dataset.times is None or not dataset.time_unit:
            return np.zeros(0, np.int64)
        if number >= dataset.num_users:
            outside, number = dataset.outside, number - dataset.num_users
            assert outside is not None
            return outside.times[outside.offsets[number]:outside.offsets[number + 1]]
        return dataset.times[dataset.offsets[number]:dataset.offsets[number + 1]]

    def _in_unit(self, seconds: float) -> int:
        return int(seconds * _PER_SECOND.get(self._dataset.time_unit, 1))

    def _feature(self, name: str, last: int | None, moments: list[int]) -> np.ndarray:
        """float32, a feature of events at some moments: the gaps where they are read, else missing.

        last: when the item before them was.
        """
        dataset = self._dataset
        if name != TIME_GAP:
            missing = np.nan if dataset.features[name].categories is None else 0
            return np.full(len(moments), missing, np.float32)
        if dataset.gaps is None or not moments:
            return np.zeros(len(moments), np.float32)
        gaps = np.diff(np.asarray(moments, np.int64), prepend=moments[0] if last is None else last).astype(np.float64)
        if last is None:
            gaps[0] = np.nan
        return dataset.gaps.numbers_of(gaps)


class UserNumbers:
    """Positions of a model's users, those whom its core left out included."""

    def __init__(self, model: Model):
        dataset = model.answers.dataset
        self._known, self._ids = IdIndex(dataset.user_ids), model.answers.user_ids.to_list()
        self._outside = None if dataset.outside is None else IdIndex(dataset.outside.user_ids)

    def get(self, user: int | str) -> int | None:
        """Where a user stands."""
        at = self._known.get(user)
        if at is None and self._outside is not None:
            at = self._outside.get(user)
            return None if at is None else len(self._known) + at
        return at

    def key(self, user: int | str) -> str:
        """One text for all ways to write a user's id."""
        at = self.get(user)
        return str(user).strip() if at is None else str(self._ids[at])
