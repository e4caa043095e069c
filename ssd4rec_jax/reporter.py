"""What training and evaluation tell the outside while they run. The default says nothing."""
import contextlib


class Reporter:
    """Silent reporter; subclass it to show progress. Every method may be left as it is."""

    def note(self, text: str) -> None:
        """A line a user should read."""

    def compiling(self, what: str) -> contextlib.AbstractContextManager:
        """Around the compilation of `what` ('the train step')."""
        return contextlib.nullcontext()

    def epoch(self, epoch: int, first_step: int, num_steps: int) -> None:
        """Epoch `epoch` (from 1) goes on at step `first_step` of `num_steps`."""

    def step(self, loss: float, targets_per_second: float) -> None:
        """One more step of the epoch is finished."""

    def evaluation(self, record: dict) -> None:
        """An evaluation's metrics.jsonl record."""

    def close(self) -> None:
        """Nothing more follows; called also when training fails."""
