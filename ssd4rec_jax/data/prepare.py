"""Source → prepared data set on disk, reused while source and settings stay the same."""
import hashlib
import json
from pathlib import Path
from typing import Protocol

from absl import logging

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import FORMAT_VERSION, SequenceDataset, open_dataset, refuse_foreign_folder, save_dataset
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.errors import DataError


class Source(Protocol):
    """Where a raw log comes from."""

    name: str

    def content_hash(self) -> str:
        """sha256 hex over everything that decides what `read` returns."""

    def read(self) -> Interactions:
        """The raw log."""


def fingerprint(source: Source, config: DataConfig) -> str:
    """sha256 hex over the source's content and the settings that shape a prepared data set."""
    parts = {
        'name': source.name, 'content': source.content_hash(), 'format_version': FORMAT_VERSION,
        'min_interactions': config.min_interactions, 'timestamp_precision': config.timestamp_precision,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def prepare(source: Source, config: DataConfig, output: Path | None = None) -> tuple[SequenceDataset, Path]:
    """(the prepared data set memory-mapped, the folder it lies in).

    output: that folder; data/NAME/prepared-<fingerprint> if None. What lies there is reused if its fingerprint
      matches and rebuilt, said aloud, if not. DataError if the source is bad or the folder holds something else.
    """
    wanted = fingerprint(source, config)
    output = Path(output or Path('data') / source.name / f'prepared-{wanted[:12]}').resolve()  # a link is followed, not replaced
    dataset = open_dataset(output)
    if dataset is not None and dataset.fingerprint == wanted:
        return dataset, output
    refuse_foreign_folder(output)
    if output.exists() and any(output.iterdir()):
        logging.warning('%s: prepared from another source or with other settings, or damaged: rebuilt', output)
    save_dataset(build_sequences(source.read(), config, name=source.name, fingerprint=wanted), output)
    opened = open_dataset(output)
    if opened is None or opened.fingerprint != wanted:
        raise DataError(f'{output}: another process prepares other data in this folder: give each data set one of its own')
    return opened, output
