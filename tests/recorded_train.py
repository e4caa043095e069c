"""A version of `ssd4rec_jax.commands.train` that records the examples of each step and sends itself a signal.

Each process writes one line per step, the ids of the examples in its rows, to its own file in the folder RECORD_IN.
After STOP_AFTER batches one process of the run, STOPPED (the last one if it is not given), gets the signal STOP_BY
(SIGTERM if not given), so that no test has to meet a run at the right moment. With SAVE_EACH there is a checkpoint
after each step, and that of a step is whole before the next but one begins. A batch is put onto the devices while the
step before it runs, so that its line is written when the next one follows or the run has ended; that of a batch whose
step a stop has prevented is never written.
"""
import json
import os
import signal
from pathlib import Path

import jax

from ssd4rec_jax.commands import train
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.train import trainer
from ssd4rec_jax.train.session import TrainSession
from tests.patient import be_patient

record = Path(os.environ['RECORD_IN']) / str(os.getpid())
record.touch()
left = int(os.environ['STOP_AFTER'])
number = int(os.environ.get('STOP_BY', signal.SIGTERM))
stopped = int(os.environ.get('STOPPED', -1))
place_rows = trainer.place_rows
waiting = []


def write():
    with record.open('a') as file:
        file.writelines(json.dumps(ids) + '\n' for ids in waiting)
    waiting.clear()


def recorded(batch, *args):
    global left
    write()
    waiting.append(batch.example_ids[batch.example_ids >= 0].tolist())
    left -= 1
    if left == 0 and jax.process_index() == stopped % jax.process_count():
        os.kill(os.getpid(), number)
    return place_rows(batch, *args)


trainer.place_rows = recorded
if 'SAVE_EACH' in os.environ:
    TrainSession.is_save_due = lambda self, *, epoch_ends=False: True  # type: ignore[method-assign]
be_patient()
try:
    run(train.main)
except SystemExit as ended:
    if not ended.code:
        write()
    raise
