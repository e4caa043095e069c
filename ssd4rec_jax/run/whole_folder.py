"""Folders that appear under their name whole, with a manifest, and replace only their own kind."""
import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl
from safetensors import SafetensorError

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import first_line, free_space, locked, swap_in
from ssd4rec_jax.run.manifest import write_manifest


@contextlib.contextmanager
def whole_folder(path: Path, files: Collection[str], what: str) -> Iterator[Path]:
    """A new folder to fill, which gets a manifest and then the name `path`; where filling it fails, nothing stays.

    files: the names that this kind of folder may hold; a folder with any other is not replaced. what: the kind in
    words, 'a saved model'. UserError where `path` is something else or the disk does not take it.
    """
    path = path.absolute()
    if path.exists():
        foreign = sorted(p.name for p in path.iterdir() if p.name not in files) if path.is_dir() else [path.name]
        if foreign:
            raise UserError(f'{path} holds {foreign[0]}, which is no part of {what}: name another folder')
    partial, replaced = (path.with_name(f'.{path.name}.{part}-{os.getpid()}') for part in ('partial', 'replaced'))
    try:
        partial.mkdir(parents=True)
        yield partial
        write_manifest(partial)
        with locked(path.parent):
            swap_in(partial, path, replaced)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:  # which each library says in its own way
        raise UserError(
            f'{what} cannot be written to {path} ({first_line(error)}; {free_space(path)} free): make room or name '
            'another folder'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
