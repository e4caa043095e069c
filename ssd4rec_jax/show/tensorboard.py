"""TensorBoard's events of a run: metrics.jsonl once more, in the form that TensorBoard reads."""
import time
from typing import Any

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog

_NOT_SHOWN = 'step', 'epoch', 'train_seconds'  # the axes


class TensorBoard(Reporter):
    """Keeps the folder `tensorboard` of a run the same as its metrics.jsonl.

    The first record of a session rewrites what an earlier session left there, from metrics.jsonl. So no step is there
    twice in a run that goes on. What TensorBoard calls relative time is the seconds of training.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._writer: Any = None
        self._summary_writer = _summary_writer()

    def logged(self, record: dict) -> None:
        """Add the record; metrics.jsonl holds it by now."""
        if self._writer is not None:
            self._add(record)
        else:
            self._rewrite()
        self._writer.flush()

    def close(self) -> None:
        """Nothing more follows."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _rewrite(self) -> None:
        events, records = self._folder.events, MetricsLog(self._folder.metrics).read()
        try:
            for old in events.glob('events.out.tfevents.*'):
                old.unlink()
            # A TensorBoard that looks on drops the steps that it has read from the old file.
            self._writer = self._summary_writer(str(events), purge_step=0)
        except OSError as error:
            raise UserError(f'{events} cannot be written: {error}') from error
        self._began = time.time() - max(record.get('train_seconds', 0.0) for record in records)
        for record in records:
            self._add(record)

    def _add(self, record: dict) -> None:
        at = self._began + record.get('train_seconds', time.time() - self._began)
        for name, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _NOT_SHOWN:
                self._writer.add_scalar(f'{record.get("kind", "other")}/{_tag(name)}', value, record['step'], at)


def _tag(name: str) -> str:
    """A name of characters that TensorBoard takes: NDCG_10, tokens_per_second."""
    return name.replace('@', '_').replace('/s', '_per_second')


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError('--tensorboard needs the package tensorboardX: pip install "ssd4rec-jax[plots]"') from error
    return SummaryWriter
