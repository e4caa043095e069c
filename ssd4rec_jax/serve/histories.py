"""What is known of each user: what the model's data holds, and then the events that came since."""
import collections
import functools
from collections.abc import Iterable

import numpy as np

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.gaps import Gaps
from ssd4rec_jax.data.ids import IdIndex
from ssd4rec_jax.serve.event_log import Event
from ssd4rec_jax.serve.model import Model
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

    def of(self, user: str) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        """(internal items int32 [n], {name: float32 [n]} that the network reads); None where nobody knows the user.

        user: as `key` gives it. Events that the model's data holds already, of the same item at the same time, count
        once. Events with items that the model does not have are left out.
        """
        number, events = self._numbers.get(user), self._new.of(user)
        if number is None and not events:
            return None
        answers, model = self._model.answers, self._model
        items = np.zeros(0, np.int32) if number is None else answers.history(number)
        features = {
            name: np.zeros(0, np.float32) if number is None else answers.feature(name, number)
            for name in model.features
        }
        if not events:
            return items, features
        times = self._times(number)
        there = set(zip(items.tolist(), times.tolist(), strict=True)) if len(times) else set()
        since = [
            (item + 1, time) for item, time in ((model.item_numbers.get(e.item), self._in_unit(e.time)) for e in events)
            if item is not None and (item + 1, time) not in there
        ]
        added = np.asarray([item for item, _ in since], np.int32)
        features = {
            name: np.concatenate([values, self._added(name, times, [time for _, time in since])])
            for name, values in features.items()
        }
        return np.concatenate([items, added]), features

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

    def _added(self, name: str, times: np.ndarray, since: list[int]) -> np.ndarray:
        """float32, a feature of events that came since: the gaps where they are read, else missing."""
        dataset = self._dataset
        if name != TIME_GAP:
            missing = np.nan if dataset.features[name].categories is None else 0
            return np.full(len(since), missing, np.float32)
        if dataset.gaps is None or not dataset.gaps.typical:
            return np.zeros(len(since), np.float32)
        joined = np.concatenate([times, np.asarray(since, np.int64)])
        return Gaps(joined, dataset.gaps.typical, '').numbers(np.arange(len(times), len(joined)))


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
