"""The interface through which training and evaluation report what they do; the default reports nothing."""
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Reporter:
    """A silent reporter. A subclass shows progress by overriding any of its methods."""

    def note(self, text: str) -> None:
        """Called with a line that the user should read."""

    def compiling(self, what: str) -> contextlib.AbstractContextManager:
        """A context manager that is open while `what` (such as 'the train step') is compiled."""
        return contextlib.nullcontext()

    def epoch(
        self, epoch: int, first_step: int, num_steps: int, max_epochs: int | None = None, patience: int | None = None
    ) -> None:
        """Called when an epoch (counted from 1) starts or continues after `first_step` of its `num_steps` steps.

        patience: the number of worse evaluations in a row, from now on, after which training still goes on.
        """

    def step(self, loss: float, targets_per_second: float) -> None:
        """Called after each step of the epoch, with the step's mean loss."""

    def evaluation(self, record: dict) -> None:
        """Called with the metrics.jsonl record of an evaluation."""

    def logged(self, record: dict) -> None:
        """Called on the first process with each record of metrics.jsonl, once it is in that file.

        It has a `kind` (train, valid or test), a `step`, an `epoch`, and figures by name. A run that goes on from a
        checkpoint reports the steps after it again.
        """

    def close(self) -> None:
        """Called when nothing more follows, also when training has failed."""


class Reporters(Reporter):
    """Several reporters, which are told the same one after another."""

    def __init__(self, *reporters: Reporter):
        self._all = reporters

    def note(self, text: str) -> None:
        for each in self._all:
            each.note(text)

    def compiling(self, what: str) -> contextlib.AbstractContextManager:
        stack = contextlib.ExitStack()
        for each in self._all:
            stack.enter_context(each.compiling(what))
        return stack

    def epoch(
        self, epoch: int, first_step: int, num_steps: int, max_epochs: int | None = None, patience: int | None = None
    ) -> None:
        for each in self._all:
            each.epoch(epoch, first_step, num_steps, max_epochs, patience)

    def step(self, loss: float, targets_per_second: float) -> None:
        for each in self._all:
            each.step(loss, targets_per_second)

    def evaluation(self, record: dict) -> None:
        for each in self._all:
            each.evaluation(record)

    def logged(self, record: dict) -> None:
        for each in self._all:
            each.logged(record)

    def close(self) -> None:
        for each in self._all:
            each.close()


_REGISTERED: list[Callable[[Path, dict[str, Any]], Reporter]] = []


def register_reporter(make: Callable[[Path, dict[str, Any]], Reporter]) -> None:
    """Have every `ssd4rec train` report to what `make` returns, beside the terminal.

    make: gets the run's folder and its settings by section, as config.json has them; called on the first process.
    """
    _REGISTERED.append(make)


def registered_reporters(folder: Path, settings: dict[str, Any]) -> list[Reporter]:
    """A reporter of each kind that was registered, for the run in a folder."""
    return [make(folder, settings) for make in _REGISTERED]
