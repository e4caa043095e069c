"""What a folder's files were when they were written, so that one flipped byte is noticed."""
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ssd4rec_jax.files import first_line, parse_json, sync_folder

MANIFEST = 'manifest.json'
# A disk that fails to read is not damage: the bytes may be sound.
_ABSENT = FileNotFoundError, NotADirectoryError, IsADirectoryError


class Damaged(Exception):
    """A folder's files are not what its manifest says."""


def write_manifest(folder: Path) -> None:
    """Write size and sha256 of every file below a folder into its manifest.json, and have all on the disk."""
    manifest = {name: _fingerprint(folder / name) for name in _files(folder)}
    # No spaces: every byte of the manifest means something, so that none can change unnoticed.
    (folder / MANIFEST).write_text(json.dumps(manifest, separators=(',', ':')))
    for name in _files(folder):
        with open(folder / name, 'rb') as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def verify(path: Path) -> None:
    """Damaged unless the folder holds exactly the files of its manifest, byte for byte."""
    manifest = _manifest(path)
    there = [name for name in _files(path) if name != MANIFEST]
    if odd := sorted(set(manifest) ^ set(there)):
        how = f'listed in {MANIFEST} and missing' if odd[0] in manifest else f'not listed in {MANIFEST}'
        raise Damaged(f'{odd[0]} is {how}')
    for name in there:
        _verify_file(path, name, manifest)


def verified_json(path: Path, name: str) -> dict:
    """The object in one JSON file of the folder, the only one to be checked; Damaged if it is not what was written."""
    _verify_file(path, name, _manifest(path))
    try:
        return parse_json((path / name).read_bytes())
    except (*_ABSENT, ValueError) as error:
        raise Damaged(f'{name}: {first_line(error)}') from error


def _manifest(path: Path) -> dict:
    try:
        return parse_json((path / MANIFEST).read_bytes())
    except (*_ABSENT, ValueError) as error:
        raise Damaged(f'{MANIFEST}: {first_line(error)}') from error


def _verify_file(path: Path, name: str, manifest: dict) -> None:
    try:
        found = _fingerprint(path / name)
    except _ABSENT as error:
        raise Damaged(f'{name}: {first_line(error)}') from error
    if found != manifest.get(name):
        raise Damaged(f'{name} is not what {MANIFEST} says was written')


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, ascending."""
    return iter(sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()))


def _fingerprint(path: Path) -> list:
    with open(path, 'rb') as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, 'sha256').hexdigest()]
