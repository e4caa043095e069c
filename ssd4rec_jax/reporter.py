"""The interface through which training and evaluation report what they do; the default reports nothing."""
import contextlib


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

    def close(self) -> None:
        """Called when nothing more follows, also when training has failed."""
