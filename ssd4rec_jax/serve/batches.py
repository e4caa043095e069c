"""Dynamic batching: questions that come while the model computes are answered together in its next step."""
import asyncio
import collections
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from absl import logging

from ssd4rec_jax.serve.model import AT_ONCE
from ssd4rec_jax.serve.questions import Best, Question


class QueueFull(Exception):
    """More questions wait than may."""


class Answering(Protocol):
    """What the thread computes with."""

    longest: int

    def room(self, length: int) -> int:
        """The tokens of the smallest step that takes a history of this length."""

    def answer(self, questions: Sequence[Question]) -> list[Best]:
        """The best items for each question."""

    def work_ahead(self) -> bool:
        """A short piece of work for which nobody waits; False where there was none."""


class _Waiting(NamedTuple):
    model: Answering
    questions: Sequence[Question]
    tokens: int
    answer: asyncio.Future


class Batches:
    """One thread that owns the computing; an event loop hands questions to it and waits for answers.

    A step takes what waits, in order, as far as it fits into the rows that the first one needs, so that a long history
    makes no short one dear. Nothing waits for company: a question that finds the thread idle is computed at once, and
    those that come meanwhile are the next step. Work ahead is done while no question waits. most: questions that may
    wait. observe: is told the number of questions of each step.
    """

    def __init__(self, most: int, observe: Callable[[int], None] = lambda size: None):
        self._most, self._observe = most, observe
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._waiting, self._stopping = 0, False
        self._ahead: Answering | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name='model', daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return self._waiting

    def ask(self, model: Answering, questions: Sequence[Question]) -> asyncio.Future:
        """A future of the running event loop for list[Best], one for each question; QueueFull where too many wait."""
        tokens = sum(min(len(question.history), model.longest) for question in questions)
        waiting = _Waiting(model, questions, tokens, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._waiting + len(questions) > self._most or self._stopping:
                raise QueueFull
            self._queue.append(waiting)
            self._waiting += len(questions)
            self._changed.notify()
        return waiting.answer

    def work_ahead(self, model: Answering) -> None:
        """Have a model do what work ahead it has."""
        with self._changed:
            self._ahead = model
            self._changed.notify()

    def stop(self) -> None:
        """Answer what waits and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            if not taken:
                self._work_ahead()
                continue
            wanted = [waiting for waiting in taken if not waiting.answer.cancelled()]
            if wanted:
                self._observe(sum(len(waiting.questions) for waiting in wanted))
                answers = _answers(wanted)
                loop = wanted[0].answer.get_loop()
                try:
                    loop.call_soon_threadsafe(_deliver, wanted, answers)
                except RuntimeError:  # The loop has ended, and with it all who waited.
                    logging.warning('answers for %d requests came after the end of their event loop', len(wanted))

    def _work_ahead(self) -> None:
        with self._changed:
            model, self._ahead = self._ahead, None
        try:
            if model is not None and model.work_ahead():
                with self._changed:
                    self._ahead = self._ahead or model
        except Exception:  # noqa: BLE001  (whatever it is, the thread must live on)
            logging.exception('the model failed')

    def _take(self) -> list[_Waiting] | None:
        """What the next step answers, nothing where there is time to work ahead; None when all is done."""
        with self._changed:
            while not self._queue and not self._stopping and self._ahead is None:
                self._changed.wait()
            if not self._queue and self._stopping:
                return None
            taken: list[_Waiting] = []
            questions = tokens = 0
            while self._queue:
                first = taken[0] if taken else self._queue[0]
                following = self._queue[0]
                questions, tokens = questions + len(following.questions), tokens + following.tokens
                if taken and (
                    questions > AT_ONCE or tokens > first.model.room(first.tokens) or following.model is not first.model
                ):
                    break
                taken.append(self._queue.popleft())
            self._waiting -= sum(len(waiting.questions) for waiting in taken)
            return taken


def _answers(waiting: list[_Waiting]) -> list[list[Best] | Exception]:
    """What each gets: its answers, or why there are none. What fails for one does not fail for the others."""
    model = waiting[0].model
    try:
        best = iter(model.answer([question for one in waiting for question in one.questions]))
        return [[next(best) for _ in one.questions] for one in waiting]
    except Exception as error:  # noqa: BLE001  (whatever it is, the thread must live on)
        if len(waiting) > 1:
            return [_answers([one])[0] for one in waiting]
        logging.exception('the model failed')
        return [error]


def _deliver(waiting: list[_Waiting], answers: list[list[Best] | Exception]) -> None:
    for one, answer in zip(waiting, answers, strict=True):
        if one.answer.done():  # Whoever waited has gone.
            continue
        if isinstance(answer, Exception):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)
