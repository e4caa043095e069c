"""A saved run made ready to answer: few compiled programs, all of them warm, and tables from ids to numbers."""
import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.data.ids import IdIndex
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.live import LiveModel, Session
from ssd4rec_jax.rank.excluded import round_up
from ssd4rec_jax.run.saved_run import SavedRun
from ssd4rec_jax.serve.questions import Best, Question, UserSession
from ssd4rec_jax.serve.search import Search

FEW, AT_ONCE = 4, 32  # histories in one step, few because an unused slot costs a row of scores
_TOKENS, _GROWTH = 512, 8  # a step's rows have 512, 4096, ... tokens
_BEST = 128  # items that the program for the usual questions ranks
EVENTS = 1, 64  # of a session in one step


class Model:
    """Answers questions about a saved run, in any thread but in one at a time.

    There are two kinds of programs: one gives the 128 best items, from which those are taken that a question does not
    leave out; the other, for few of the questions for which that may be too few, gives all scores. Both exist for
    histories and for sessions.

    titles: what items are called, by the text of their ids. longest: items of a history that must be read at least; it
    grows to the longest history of the data, and is then the number of newest items of any history that are read.
    """

    def __init__(self, saved: SavedRun, titles: Mapping[str, str] | None = None, longest: int = 4096):
        longest = max(int(saved.dataset.lengths.max(initial=0)), longest)
        if saved.config.data.max_history:
            longest = min(longest, saved.config.data.max_history)
        self._shapes = step_shapes(saved.mesh.size, longest)
        self.longest = self._shapes[-1].tokens
        self.answers = Answers(saved, self._shapes)
        self.live = LiveModel(saved, sessions=(FEW, AT_ONCE), events=EVENTS)
        self.num_items = saved.dataset.num_items
        self.item_numbers = IdIndex(saved.dataset.item_ids)
        self.item_ids: list[int | str] = self.answers.item_ids.to_list()
        counts = self.answers.counts.astype(np.float64)
        counts[0] = -np.inf
        self._counts, self._titles = counts, titles or {}

    def item(self, number: int, *, title: bool) -> dict[str, Any]:
        """What is said of an item: its original id and, where there is one and it is wanted, its title."""
        id_ = self.item_ids[number - 1]
        known = self._titles.get(str(id_)) if title else None
        return {'item': id_} if known is None else {'item': id_, 'title': known}

    @functools.cached_property
    def search(self) -> Search:
        """Finds items by a part of their title and id, the most frequent ones first."""
        texts = [' '.join(filter(None, (self._titles.get(str(id_)), str(id_)))) for id_ in self.item_ids]
        return Search(texts, np.argsort(-self._counts[1:], kind='stable').tolist())

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """float32 [items + 1, D], the items' vectors with length 1."""
        vectors = self.answers.table
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)

    @property
    def features(self) -> tuple[str, ...]:
        """What the network reads of each event beside its item."""
        return tuple(self.answers.dataset.values_read)

    def warm(self, *, sessions: bool) -> None:
        """Compile every program that a question can need, or read it from the compilation cache, and run it once.

        sessions: also those of sessions, where the model can step.
        """
        for shape in self._shapes:
            # A shape is chosen for the longest history that it takes, and for as many as it takes.
            lengths = [shape.tokens - shape.segments + 1, *[1] * (shape.segments - 1)]
            histories = [np.ones(length, np.int32) for length in lengths]
            questions = [
                Question(h, {name: np.zeros(len(h), np.float32) for name in self.features}, 1) for h in histories
            ]
            self._usual(questions)
            self._rare(questions[:FEW])
        if sessions and not self.live.recomputes:
            self._warm_sessions()

    def _warm_sessions(self) -> None:
        for slots in FEW, AT_ONCE:
            sessions = self.live.begin([[]] * slots)
            for events in EVENTS:
                taken = [np.ones(events, np.int32)] * slots
                self.live.take(sessions, taken, [np.zeros(events, np.float32)] * slots, [None] * slots)
            questions = [Question(np.zeros(0, np.int32), {}, 1, of=UserSession('', session)) for session in sessions]
            # As many distinct items as rows have tokens, and as many as sessions of the longest history hold together.
            sizes = {shape.tokens for shape in self._shapes} | {self.longest * _GROWTH, self.longest * slots}
            for tokens in sorted(sizes):
                for session in sessions:
                    session.held.add(range(1, min(tokens // slots, self.num_items) + 1), 0)
                self._usual(questions)
                self._rare(questions[:FEW])

    def room(self, length: int) -> int:
        """The tokens of the smallest step that takes a history of this length."""
        return next(shape.tokens for shape in self._shapes if shape.tokens >= length or shape is self._shapes[-1])

    def answer(self, questions: Sequence[Question]) -> list[Best]:
        """The best items for each question. TrainingError where a score is not finite."""
        kinds: dict[tuple, list[int]] = collections.defaultdict(list)
        for at, question in enumerate(questions):
            kinds[self._kind(question)].append(at)
        found: dict[int, Best] = {}
        for (of, most, _), places in kinds.items():
            for start in range(0, len(places), most):
                part = places[start:start + most]
                found |= zip(part, of([questions[at] for at in part]), strict=True)
        return [found[at] for at in range(len(questions))]

    def _kind(self, question: Question) -> tuple[Callable[[list[Question]], list[Best]], int, bool]:
        """(what answers it, how many of them at once, whether by its session); those of one kind go together."""
        if not len(question.seen):
            return self._popular, 1, False
        stepped = question.of is not None
        if question.only is None and question.k + len(question.left_out) <= _BEST:
            return self._usual, AT_ONCE, stepped
        return self._rare, FEW, stepped

    def _usual(self, questions: list[Question]) -> list[Best]:
        if sessions := _sessions(questions):
            items, scores = self.live.top(sessions, k=_BEST)
        else:
            items, scores = self.answers.top(self._histories(questions), k=_BEST, features=self._features(questions))
        found = []
        for question, row, values in zip(questions, items.tolist(), scores.tolist(), strict=True):
            left_out = question.left_out
            kept = [n for n, item in enumerate(row) if item not in left_out][:question.k]
            found.append(Best([row[n] for n in kept], [values[n] for n in kept], True, question.seen))
        return found

    def _rare(self, questions: list[Question]) -> list[Best]:
        if sessions := _sessions(questions):
            rows = self.live.scores(sessions)
        else:
            every = np.arange(1, self.num_items + 1)
            rows = self.answers.top.scores(self._histories(questions), every, features=self._features(questions))
        return [
            Best(*_best(np.concatenate([[-np.inf], row]), question), True, question.seen)
            for question, row in zip(questions, rows, strict=True)
        ]

    def _popular(self, questions: list[Question]) -> list[Best]:
        return [Best(*_best(self._counts.copy(), question), False, question.seen) for question in questions]

    def _histories(self, questions: list[Question]) -> list[np.ndarray]:
        return [question.history[-self.longest:] for question in questions]

    def _features(self, questions: list[Question]) -> dict[str, list[np.ndarray]]:
        return {name: [q.features[name][-self.longest:] for q in questions] for name in self.features}


def step_shapes(rows: int, longest: int) -> list[StepShape]:
    """The shapes of steps for histories of up to `longest` items, the cheapest first."""
    tokens = [min(_TOKENS, round_up(longest))]
    while tokens[-1] < longest:
        tokens.append(tokens[-1] * _GROWTH)
    return [StepShape(rows, n, slots) for n in tokens for slots in (FEW, AT_ONCE)]


def _sessions(questions: list[Question]) -> list[Session]:
    """Those of questions that all have one; empty where none has."""
    return [question.of.session for question in questions if question.of is not None]


def _best(scores: np.ndarray, question: Question) -> tuple[list[int], list[float]]:
    """(items, scores) of the k best, equal scores by lower number; scores [items + 1] is overwritten."""
    if question.only is not None:
        allowed = np.zeros(len(scores), bool)
        allowed[list(question.only)] = True
        scores[~allowed] = -np.inf
    scores[list(question.left_out)] = -np.inf
    k = min(question.k, len(scores))
    least = np.partition(scores, -k)[-k]
    at = np.flatnonzero((scores >= least) & (scores > -np.inf))
    at = at[np.argsort(-scores[at], kind='stable')][:k]
    return at.tolist(), scores[at].tolist()
