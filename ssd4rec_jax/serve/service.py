"""What a service does, apart from HTTP: answer, take events in, take a new model in."""
import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.run.saved_run import SavedRun, load_run
from ssd4rec_jax.serve.batches import Batches, QueueFull
from ssd4rec_jax.serve.bodies import EventsBody, OneUser, RecommendBody, Refused, Search
from ssd4rec_jax.serve.event_log import Event, EventLog
from ssd4rec_jax.serve.histories import Histories, NewEvents
from ssd4rec_jax.serve.limits import Limits
from ssd4rec_jax.serve.log_writer import LogWriter
from ssd4rec_jax.serve.metrics import Metrics
from ssd4rec_jax.serve.model import AT_ONCE, Model
from ssd4rec_jax.serve.questions import Best, Question, Read, UserSession
from ssd4rec_jax.serve.sessions import Sessions
from ssd4rec_jax.show.output import complain

_SHOWN = 100  # events of a history that are shown
_NONE = np.zeros(0, np.int32)


class Serving:
    """A model, and the histories and sessions of users as it reads them; replaced as one when a new model is taken in.

    sessions: users whose sessions are held.
    """

    def __init__(self, model: Model, new: NewEvents, sessions: int):
        self.model, self.histories = model, Histories(model, new)
        self.sessions = Sessions(model.live, self.histories, sessions)
        self.longest, self.room = model.longest, model.room

    def warm(self) -> None:
        """As Model.warm."""
        self.model.warm(sessions=self.sessions.most > 0)

    def answer(self, questions: Sequence[Question]) -> list[Best]:
        """As Model.answer, from sessions that have taken every event."""
        self.sessions.advance(question.of for question in questions if question.of is not None)
        return self.model.answer(questions)

    def work_ahead(self) -> bool:
        """Have sessions take events before anybody asks; False where none was behind."""
        return self.sessions.advance_some(AT_ONCE)


class Service:
    """Owns the model, the queue before it, and the log of events.

    saved: the run to begin with. log: open. titles: what items are called, by the text of their ids. clock: seconds
    since 1970, for events without a time.
    """

    def __init__(
        self, saved: SavedRun, log: EventLog, *, limits: Limits | None = None, titles: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.limits, self.metrics, self._titles, self._clock = limits or Limits(), Metrics(), titles, clock
        self._new = NewEvents(log.take())
        self.serving = self._serving(saved)
        self.ready = False
        self._batches = Batches(self.limits.queue, self.metrics.batch.observe)
        self._writer = LogWriter(log, self.limits.queue, self._kept)
        self._reloading = threading.Lock()
        self.metrics.watch(
            lambda: self._batches.waiting, lambda: self.serving.model.answers.saved.step,
            lambda: len(self.serving.sessions),
        )

    def _serving(self, saved: SavedRun) -> Serving:
        return Serving(Model(saved, self._titles, self.limits.history), self._new, self.limits.sessions)

    def warm(self) -> None:
        """Make every program ready; takes seconds, and `ready` is True afterwards."""
        self.serving.warm()
        _settle()
        self.ready = True

    def take_in(self, path: Path) -> None:
        """Load and warm the model in a folder beside the one that answers, then answer with it.

        Requests that are in flight are answered by the model that they met. Where it cannot be read, the old one goes
        on, and a warning says why.
        """
        with self._reloading:
            try:
                serving = self._serving(load_run(path))
                serving.warm()
            except Exception as error:  # such as want of memory for two models
                self.metrics.reloads.labels('failed').inc()
                logging.warning('the new model is not taken in, and the old one goes on: %s', error)
                return
            self.serving = serving
            _settle()
            self.metrics.reloads.labels('done').inc()
            complain(f'{path}: the model of step {serving.model.answers.saved.step} answers from now on')

    def stop(self) -> None:
        """Finish what waits."""
        self.ready = False
        self._batches.stop()
        self._writer.stop()

    async def recommend(self, body: RecommendBody) -> dict[str, Any]:
        """The answer to POST /recommend; Refused where there is none."""
        serving, limits = self.serving, self.limits
        model = serving.model
        _at_most(body.k, limits.k, 'k')
        exclude = self._items(model, body.exclude, 'exclude', limits.ids, body.skip_unknown)
        only = None
        if body.only is not None:
            only = frozenset(self._items(model, body.only, 'only', limits.ids, body.skip_unknown))
        names, read = self._asked(serving, body)
        wanted = min(body.k, model.num_items), frozenset(exclude), body.exclude_seen, only
        questions = [
            Question(_NONE, {}, *wanted, known) if isinstance(known, UserSession) else
            Question(known.items, known.features, *wanted) for known in read
        ]
        try:
            best = await self._batches.ask(serving, questions)
        except QueueFull:
            raise Refused(429, 'too many requests wait for the model: try again in a second') from None
        self._work_ahead(serving)
        for question in questions:
            self.metrics.answers.labels('history' if question.of is None else 'session').inc()
        return {'answers': [_answer(name, model, found, body) for name, found in zip(names, best, strict=True)]}

    async def append(self, body: EventsBody) -> dict[str, Any]:
        """The answer to POST /events, once the disk holds them; Refused where they are not kept."""
        _at_most(len(body.events), self.limits.events, 'the number of events')
        serving, now = self.serving, self._clock()
        events = []
        for at, event in enumerate(body.events):
            self._check_length(event.user, f'events[{at}].user')
            (item,) = self._items(serving.model, [event.item], f'events[{at}].item', 1, False)
            user = serving.histories.key(event.user)
            if not user:
                raise Refused(422, f'events[{at}].user: an id must not be blank')
            events.append(Event(user, str(serving.model.item_ids[item - 1]), now if event.time is None else event.time))
        try:
            await self._writer.append(events)
        except QueueFull:
            raise Refused(429, 'too many requests wait for the disk: try again in a second') from None
        except UserError as error:
            logging.error('%s', error)
            raise Refused(503, 'the disk does not take events: nothing of this request is kept') from error
        return {'kept': len(events)}

    def state(self) -> dict[str, Any]:
        """The answer to GET /ready. sessions: 'live', or why none are held and each history is read anew."""
        model, held = self.serving.model, 'live' if self.limits.sessions else 'none are to be held'
        return {'status': 'ready', 'step': model.answers.saved.step, 'sessions': model.live.recomputes or held}

    def about(self) -> dict[str, Any]:
        """The answer to GET /about."""
        model = self.serving.model
        return {'items': model.num_items, 'users': self.serving.histories.num_users, 'step': model.answers.saved.step}

    def find_items(self, asked: Search) -> dict[str, Any]:
        """The answer to GET /items: those whose title or id holds a part."""
        model = self.serving.model
        return {'items': [model.item(at + 1, title=True) for at in model.search.find(asked.search, asked.limit)]}

    def find_users(self, asked: Search) -> dict[str, Any]:
        """The answer to GET /users: those whose id holds a part, or a sample of all."""
        return {'users': self.serving.histories.find(asked.search, asked.limit)}

    def history(self, asked: OneUser) -> dict[str, Any]:
        """The answer to GET /history: what is known of a user, the newest first; an unknown one has nothing."""
        self._check_length(asked.user, 'user')
        serving = self.serving
        key = serving.histories.key(asked.user)
        known = serving.histories.of(key)
        items = [] if known is None else known.items.tolist()
        return {
            'user': key, 'total': len(items),
            'items': [serving.model.item(item, title=True) for item in items[:-_SHOWN - 1:-1]],
        }

    def _kept(self, events: Sequence[Event]) -> None:
        self._new.add(events)
        self.metrics.events.inc(len(events))
        # Apart, so that whatever happens to a session, what the disk holds is acknowledged.
        asyncio.get_running_loop().call_soon(self._follow, dict.fromkeys(event.user for event in events))

    def _follow(self, users: Iterable[str]) -> None:
        for user in users:
            self.serving.sessions.follow(user)
        self._work_ahead(self.serving)

    def _work_ahead(self, serving: Serving) -> None:
        if serving.sessions.behind:
            self._batches.work_ahead(serving)

    def _asked(
        self, serving: Serving, body: RecommendBody
    ) -> tuple[list[int | str | None], list[Read | UserSession]]:
        """(names, what is known) of the users or histories of a request."""
        limits = self.limits
        if (body.users is None) == (body.histories is None):
            raise Refused(422, 'give either users or histories')
        if body.users is None:
            assert body.histories is not None
            _at_most(len(body.histories), limits.histories, 'the number of histories')
            return [None] * len(body.histories), [
                self._history(serving.model, history, f'histories[{at}]', body.skip_unknown)
                for at, history in enumerate(body.histories)
            ]
        _at_most(len(body.users), limits.histories, 'the number of users')
        names: list[int | str | None] = []
        found: list[Read | UserSession] = []
        for at, user in enumerate(body.users):
            self._check_length(user, f'users[{at}]')
            key = serving.histories.key(user)
            known = serving.sessions.near(key) or serving.histories.of(key)
            if known is not None:
                names.append(user)
                found.append(known)
            elif not body.skip_unknown:
                raise Refused(404, f'users[{at}]: {user!r} is neither in the log nor in any event')
        return names, found

    def _history(self, model: Model, history: list[int | str], what: str, skip: bool) -> Read:
        if unknown := [name for name in model.features if name != TIME_GAP]:
            raise Refused(422, f'the model reads {unknown[0]} of each event, which no history has: ask for users')
        items = np.asarray(self._items(model, history, what, self.limits.history, skip), np.int32)
        # Gaps in time count as typical.
        return Read(items, {name: np.zeros(len(items), np.float32) for name in model.features}, 0, None)

    def _items(self, model: Model, ids: list[int | str], what: str, most: int, skip: bool) -> list[int]:
        """Internal ids; Refused where one is not known, unless these are skipped."""
        _at_most(len(ids), most, f'the length of {what}')
        found = []
        for at, id_ in enumerate(ids):
            number = model.item_numbers.get(id_)
            if number is not None:
                found.append(number + 1)
            elif not skip:
                place = what if what.endswith('.item') else f'{what}[{at}]'
                self._check_length(id_, place)
                raise Refused(422, f'{place}: {id_!r} is not an item of the model')
        return found

    def _check_length(self, id_: int | str, what: str) -> None:
        if isinstance(id_, str) and len(id_) > self.limits.id_length:
            raise Refused(422, f'{what}: an id must not have more than {self.limits.id_length} characters')


def _settle() -> None:
    """Leave what is there now out of later searches for garbage, which would halt every answer for .2 s."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _at_most(value: int, most: int, what: str) -> None:
    if value > most:
        raise Refused(422, f'{what} is {value}, and at most {most} is answered at once')


def _answer(name: int | str | None, model: Model, best: Best, body: RecommendBody) -> dict[str, Any]:
    items = [
        {**model.item(item, title=body.titles), 'score': score}
        for item, score in zip(best.items, best.scores, strict=True)
    ]
    if body.why:
        for entry, nearest in zip(items, _nearest(model, best.items, best.seen, body.why), strict=True):
            entry['why'] = [{**model.item(item, title=body.titles), 'cosine': cosine} for item, cosine in nearest]
    answer = {'reason': 'model' if best.by_model else 'popularity', 'items': items}
    return answer if name is None else {'user': name, **answer}


def _nearest(model: Model, items: list[int], history: np.ndarray, most: int) -> list[list[tuple[int, float]]]:
    """For each item the items of the history, each once, whose vectors have the highest cosine with its own."""
    held = np.unique(history)
    cosine = model.directions[items] @ model.directions[held].T
    best = np.argsort(-cosine, axis=1, kind='stable')[:, :most]
    return [[(int(held[n]), float(row[n])) for n in order] for row, order in zip(cosine, best, strict=True)]
