"""Whole training runs that differ only in the size of the catalogue and the loss, each in a process of its own."""
import contextlib
import dataclasses
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.trainer import Trainer

RUNS = (50_000, 'full'), (50_000, 'sampled'), (5_000_000, 'sampled')
USERS, LENGTH = 512, 30


def generated(items: int, users: int = USERS, length: int = LENGTH) -> SequenceDataset:
    """A log with a Zipf-like distribution of items, in which most items of the catalogue do not occur."""
    rng = np.random.default_rng(0)
    histories = 1 + (items * rng.random(users * length) ** 3).astype(np.int32)
    return SequenceDataset(
        name='generated', items=histories, offsets=np.arange(users + 1) * length, user_ids=np.arange(users),
        item_ids=np.arange(items), fingerprint=f'generated {items} {users} {length}',
    )


def measure_catalogues(config: RunConfig, runs: Sequence[tuple[int, str]] = RUNS) -> list[dict]:
    """The figures of one epoch, with evaluation, checkpoints and result, for each (items, loss) in runs."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_epochs=1, log_every=1))
    measured = []
    for items, loss in runs:
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
            try:
                measured.append(process.submit(_run, config, items, loss).result())
            except BrokenProcessPool as death:
                raise TrainingError(
                    f'the run with {items:,} items was killed, most likely for want of memory: free some, or see '
                    '`dmesg` for what the kernel killed'
                ) from death
    return measured


def _run(config: RunConfig, items: int, loss: str) -> dict:
    compiling = _Compiling()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, loss=loss))
    with tempfile.TemporaryDirectory() as folder:
        workdir = RunFolder(folder)
        workdir.lock()
        trainer = Trainer(config, generated(items), workdir, reporter=compiling)
        result = trainer.run()
        assert result is not None  # Nothing asks this run to stop early.
        records = trainer.session.metrics_log.read()
    evaluation = next(record for record in records if record['kind'] == 'valid')
    steps = [record for record in records if record['kind'] == 'train']
    return {
        'items': items, 'loss': result['loss'], 'parameters': result['parameters'], 'steps': len(steps),
        'step_seconds': result['train_seconds'] / len(steps), 'compile_seconds': compiling.seconds,
        'evaluation_seconds': evaluation['evaluation_seconds'],
        'checkpoint_wait_seconds': result['checkpoint_wait_seconds'],
        'first_loss': steps[0]['loss'], 'last_loss': steps[-1]['loss'],
        'peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


class _Compiling(Reporter):
    """Adds up the seconds that compilation takes."""

    def __init__(self):
        self.seconds = 0.0

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started
