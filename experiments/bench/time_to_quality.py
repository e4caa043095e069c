"""How long a training takes to a given validation NDCG@10, with each preset, from the command's first step on."""
import tempfile
import time
from pathlib import Path
from typing import Any

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.trainer import STOPPING_METRIC, Trainer


def measure_time_to_quality(
    configs: dict[str, RunConfig], dataset: SequenceDataset, *, goal: float, minutes: float
) -> dict[str, Any]:
    """{name: {'seconds' to the goal, None where it was not reached, 'curve': [[seconds, epoch, NDCG@10], ...]}}.

    The trainings run one after another, each until its validation reaches the goal, its epochs end or so many minutes
    are over. Compiling counts. What follows the last validation, such as the ranking of the test set, does not.
    """
    return {name: _measured(config, dataset, goal, minutes) for name, config in configs.items()}


def _measured(config: RunConfig, dataset: SequenceDataset, goal: float, minutes: float) -> dict[str, Any]:
    watch = _Watch(goal, minutes)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / 'run')
        run.lock()
        trainer = Trainer(config, dataset, run, reporter=watch, stop_requested=watch.is_over).open()
        trainer.run()
    reached = [seconds for seconds, _, value in watch.curve if value >= goal]
    return {'seconds': reached[0] if reached else None, 'curve': watch.curve}


class _Watch(Reporter):
    """The validations of a training and when they came."""

    def __init__(self, goal: float, minutes: float):
        self.goal, self.end = goal, time.monotonic() + 60 * minutes
        self.started, self.curve = time.monotonic(), []  # type: float, list[tuple[float, int, float]]

    def evaluation(self, record: dict) -> None:
        """Keep a validation."""
        if record['kind'] == 'valid':
            self.curve.append((time.monotonic() - self.started, record['epoch'], record[STOPPING_METRIC]))

    def is_over(self) -> bool:
        """Whether the goal is reached or the time is over; asked after each step."""
        return bool(self.curve and self.curve[-1][2] >= self.goal) or time.monotonic() > self.end


def draw_curves(figures: dict[str, Any], goal: float, path: Path) -> None:
    """A picture of the curves of measure_time_to_quality; UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'ssd4rec-jax[plots]'") from error
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    # Colour-blind safe, and told apart by their markers in grey.
    styles = [('#0072B2', 'o'), ('#D55E00', 's'), ('#009E73', '^')]
    for (name, own), (color, marker) in zip(figures.items(), styles, strict=True):
        seconds, _, values = zip(*own['curve'], strict=True) if own['curve'] else ((), (), ())
        axes.plot(seconds, values, color=color, marker=marker, label=name)
    axes.axhline(goal, color='0.5', linestyle='--', linewidth=1)
    axes.set(xlabel='seconds of training, compiling included', ylabel=f'validation {STOPPING_METRIC}')
    axes.legend()
    figure.savefig(path)
