"""Source → prepared data set on disk, reused while source and settings stay the same."""
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from absl import logging

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, refuse_foreign_folder, save_dataset, with_split
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.data.tables.batch import BadRow
from ssd4rec_jax.errors import DataError
from ssd4rec_jax.files import replace_file


class Source(Protocol):
    """Where a raw log comes from."""

    @property
    def name(self) -> str:
        """Of the data set."""

    def content_hash(self) -> str:
        """sha256 hex over everything that decides what `read` returns."""

    def read(self) -> Interactions:
        """The raw log."""


def fingerprint(source: Source, config: DataConfig) -> str:
    """sha256 hex over the source's content and the settings that shape a prepared data set."""
    # As format 1 wrote it, so that what was prepared and trained with that is found again.
    parts = {
        'name': source.name, 'content': source.content_hash(), 'format_version': 1,
        'min_interactions': config.user_core, 'timestamp_precision': config.timestamp_precision,
    }
    if config.item_core != config.user_core:
        parts['min_item_interactions'] = config.item_core
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def prepare(source: Source, config: DataConfig, output: Path | None = None) -> tuple[SequenceDataset, Path]:
    """(the prepared data set memory-mapped, the folder it lies in).

    output: that folder; data/NAME/prepared-<fingerprint> if None. What lies there is reused if its fingerprint
      matches and rebuilt, said aloud, if not. DataError if the source is bad or the folder holds something else.
    """
    wanted = fingerprint(source, config)
    # A link is followed, not replaced.
    output = Path(output or Path('data') / source.name / f'prepared-{wanted[:12]}').resolve()
    dataset = open_dataset(output)
    old = dataset is not None and dataset.times is None and config.split == 'time'  # format 1 kept no times
    if dataset is not None and dataset.fingerprint == wanted and not old:
        return with_split(dataset, config), output
    refuse_foreign_folder(output)
    if output.exists() and any(output.iterdir()):
        logging.warning('%s: prepared from another source or with other settings, or damaged: rebuilt', output)
    read = [source.read()]
    bad_rows = read[0].bad_rows
    # Nothing here keeps the log, so that each of its columns goes as soon as its successor is there.
    dataset = build_sequences(read.pop(), config, name=source.name, fingerprint=wanted)
    if bad_rows:
        write_bad_rows(bad_rows, bad_rows_file(output))
    save_dataset(dataset, output)
    opened = open_dataset(output)
    if opened is None or opened.fingerprint != wanted:
        raise DataError(
            f'{output}: another process prepares other data in this folder: give each data set one of its own'
        )
    return with_split(opened, config), output


def bad_rows_file(output: Path) -> Path:
    """Where the rows that were left out of a prepared data set are listed: beside its folder."""
    return output.with_name(f'{output.name}.bad_rows.tsv')


def write_bad_rows(rows: Iterable[BadRow], path: Path) -> None:
    """One line a row: where it stands, what is wrong with it, and the row itself, separated by tabulators."""
    lines = ['place\treason\trow', *('\t'.join(_one_line(part) for part in (r.place, r.reason, r.text)) for r in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda out: out.write(('\n'.join(lines) + '\n').encode(errors='replace')))


def _one_line(text: str) -> str:
    return text.replace('\\', '\\\\').replace('\n', '\\n').replace('\t', '\\t').replace('\r', '\\r')
