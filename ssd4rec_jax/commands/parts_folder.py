"""A folder in which several processes write one table, each part of it whole and under a name of its own."""
import os
import re
from pathlib import Path
from typing import Any

from ssd4rec_jax.commands.table_file import ENDINGS
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import parse_json, seal, unseal, write_json

_ASKED = 'asked.json'  # what the parts answer
_OURS = re.compile(r'part-\d{5,}-of-\d{5,}\.parquet|\..*')


def check_parts_folder(flag: str, name: str | None) -> Path:
    """The path of a folder of parts that is to be written; UserError, before any work, where it cannot be."""
    if not name or Path(name).suffix in ENDINGS:
        raise UserError(
            f'{flag}={name or ""}: several processes write a folder with one .parquet file each: name a folder'
        )
    path = Path(name).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f'{flag}={name} is a file: name a folder')
    if not path.parent.is_dir():
        raise UserError(f'{flag}={name} cannot be written: there is no folder {path.parent}')
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f'{flag}={name} cannot be written: the folder is read-only')
    return path


def part_name(number: int, of: int) -> str:
    """The file of a part, which is counted from 0: part-00001-of-00004.parquet is number 0 of 4."""
    return f'part-{number + 1:05d}-of-{of:05d}.parquet'


def missing_parts(path: Path, parts: int, asked: dict[str, Any]) -> list[int]:
    """The numbers of the parts that have still to be written; makes the folder where there is none.

    asked: what decides the parts' content, short JSON values by name. UserError where the folder holds answers to
    something else, or anything that is no part.
    """
    asked = {**asked, 'parts': parts}
    try:
        path.mkdir(exist_ok=True)
        foreign = sorted(file.name for file in path.iterdir() if file.name != _ASKED and not _OURS.fullmatch(file.name))
        if foreign:
            raise UserError(f'{path} holds {foreign[0]}, which is no part of recommendations: name another folder')
        if not (path / _ASKED).exists():
            if any(path.glob('part-*')):
                raise UserError(f'{path} holds parts, and no {_ASKED} that says of what: name another folder')
            write_json(path / _ASKED, seal(asked))
        before = unseal(parse_json((path / _ASKED).read_bytes()))
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'{path / _ASKED} is damaged ({error}): name another folder') from error
    for name in {**asked, **before}:
        if before.get(name) != asked.get(name):
            raise UserError(
                f'{path} holds answers to something else ({name}: {before.get(name)} there, {asked.get(name)} now): '
                'name another folder, or give the same command as there'
            )
    return [number for number in range(parts) if not (path / part_name(number, parts)).exists()]
