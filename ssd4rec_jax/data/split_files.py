"""Logs that come as three files: what trains, what is validated and what is tested."""
import re
from collections.abc import Mapping
from pathlib import Path

from ssd4rec_jax.data.log import REFUSE, BadRowPolicy
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.data.sources import FileSource
from ssd4rec_jax.data.tables.formats import GUESS, TableOptions
from ssd4rec_jax.errors import ConfigError, DataError

_WORDS = {
    'train': {'train', 'training'}, 'valid': {'valid', 'validation', 'val', 'dev'}, 'test': {'test', 'testing'},
}


def split_files(
    folder: str | Path | None, named: Mapping[str, str | Path | None], *, options: TableOptions = GUESS,
    policy: BadRowPolicy = REFUSE,
) -> FileSource:
    """The source of a log in three files.

    folder: holds one file of each part, told by the words in its name, such as log.train.csv. named: {'train', 'valid',
      'test': file} of those that are named one by one. DataError where a file is not there or more than one could be
      meant.
    """
    if folder is not None and not Path(folder).is_dir():
        raise DataError(f'--data_dir={folder}: is no folder, and data.split=files takes one with a file of each part')
    files = {part: Path(named[part] or _of_part(folder, part)) for part in _WORDS}
    if len(set(files.values())) < len(files):
        raise ConfigError(f'--train_file, --valid_file and --test_file name one file twice: {files["train"]}')
    return FileSource('interactions', tuple(map(RawFile, files.values())), options, policy, parts=tuple(files))


def _of_part(folder: str | Path | None, part: str) -> Path:
    if folder is None:
        raise DataError(
            f'data.split=files needs the file of each part: name it with --{part}_file, or all by --data_dir'
        )
    found = sorted(
        path for path in Path(folder).iterdir()
        if path.is_file() and not path.name.startswith(('.', '_'))
        and not _WORDS[part].isdisjoint(re.split('[^a-z]+', path.name.lower()))
    )
    if len(found) != 1:
        words = ' or '.join(sorted(_WORDS[part]))
        which = f'more than one ({", ".join(path.name for path in found[:3])})' if found else 'none'
        raise DataError(
            f'--data_dir={folder}: of its files {which} has {words} in its name: name the one with --{part}_file'
        )
    return found[0]
