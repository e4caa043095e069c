"""Prepare a data set and describe it.

    ssd4rec prepare --dataset=ml-100k --data_dir=DIR --output=DIR [--set=data.timestamp_precision=float32]
    ssd4rec prepare --dataset=interactions --data_dir=LOG [--columns=user,item,time] [--bad_rows=skip]

Prints one JSON line: users, items, interactions, median and longest history, prediction targets of each split, sha256
of the held-out items (lines 'user,item' of original ids, users ascending), and what was read, left out and noticed.
What was guessed of a log goes to stderr too.
"""
import json

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.config_flags import overridden
from ssd4rec_jax.commands.dataset_flags import DATASET, prepared_dataset
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.data.examples import nothing_left
from ssd4rec_jax.data.summary import describe
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.show.output import complain, write_stdout


def main() -> int:
    dataset, _ = prepared_dataset(overridden(default_config(DATASET.value)), OUTPUT.value)
    for note in dataset.report.get('notes', []):
        complain(note)
    said = describe(dataset)
    for use in ('train', 'valid', 'test'):
        if not said[f'{use}_targets']:
            complain(f'warning: no {use} targets: {nothing_left(dataset)}')
    write_stdout(json.dumps(said) + '\n')
    return 0


if __name__ == '__main__':
    run(main)
