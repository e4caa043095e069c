"""A version of `ssd4rec_jax.commands.train` that records the examples of each step and stops by itself.

Each process writes one line per step, the ids of the examples in its rows, to its own file in the folder RECORD_IN.
After STOP_AFTER batches the last process of the run gets a SIGTERM. A batch is put onto the devices while the step
before it runs, so that its line is written when the next one follows or the run has ended; that of a batch whose step
a stop has prevented is never written.
"""
import json
import os
import signal
from pathlib import Path

import jax

from ssd4rec_jax.commands import train
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.train import trainer

record = Path(os.environ['RECORD_IN']) / str(os.getpid())
record.touch()
left = int(os.environ['STOP_AFTER'])
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
    if left == 0 and jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return place_rows(batch, *args)


trainer.place_rows = recorded
try:
    run(train.main)
except SystemExit as ended:
    if not ended.code:
        write()
    raise
