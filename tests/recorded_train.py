"""A version of `ssd4rec_jax.commands.train` that records the examples of each step and stops by itself.

Each process writes one line per step, the ids of the examples in its rows, to its own file in the folder RECORD_IN.
After STOP_AFTER steps the last process of the run gets a SIGTERM.
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


def recorded(batch, *args):
    global left
    with record.open('a') as file:
        file.write(json.dumps(batch.example_ids[batch.example_ids >= 0].tolist()) + '\n')
    left -= 1
    if left == 0 and jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return place_rows(batch, *args)


trainer.place_rows = recorded
run(train.main)
