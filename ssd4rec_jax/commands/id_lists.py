"""Original ids as flags and files give them: every id of a log can be written down, whatever characters it has."""
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.show.output import one_line

STDIN = '-'
HOW = (
    'ids separated by commas, or a JSON list where an id holds a comma, a quote or an outer blank: '
    '\'["red, blue", "i5"]\''
)


def ids_of(flag: str, text: str) -> list[str]:
    """The ids in a flag's value: a JSON list, or ids separated by commas and quoted as in a csv file.

    UserError where there is none, or where the list is broken.
    """
    if text.lstrip().startswith('[') and text.rstrip().endswith(']'):
        ids = _as_list(f'{flag}={text}', _parsed(f'{flag}={text}', text))
    else:
        ids = [part.strip() for part in _split(flag, text)]
    ids = [id_ for id_ in ids if id_]
    if not ids:
        raise UserError(f'{flag}: no id given; write {HOW}')
    return ids


def ids_or_file(flag: str, text: str) -> list[str]:
    """`ids_of`, or where the value is '-' or names a file the ids in it, one on each line."""
    return ids_in_file(flag, text) if text == STDIN or _is_file(text) else ids_of(flag, text)


def ids_in_file(flag: str, name: str) -> list[str]:
    """The ids in a file, or in stdin for '-': one on each line, as they are; blank lines count for nothing."""
    ids = [line for _, line in _lines(flag, name)]
    if not ids:
        raise UserError(f'{flag}={name} holds no id: write one on each line')
    return ids


def histories_in_file(flag: str, name: str) -> Iterator[tuple[str, list[str]]]:
    """(name, item ids) of each line of a JSON lines file: a list of ids, or {"user": ..., "history": [...]}.

    The name is the user or, of a list, the number of its line from 1. UserError names the line that is neither, and is
    raised too where there is no line.
    """
    number = 0
    for number, line in _lines(flag, name):
        where = f'{flag}={name}, line {number}'
        value, user = _parsed(where, line), str(number)
        if isinstance(value, dict):
            if 'history' not in value:
                raise UserError(f'{where} has no "history": write {{"user": "u1", "history": ["a", "b"]}}')
            user, value = str(value.get('user', user)), value['history']
        yield user, _as_list(where, value)
    if not number:
        raise UserError(f'{flag}={name} holds no history: write one on each line, as in ["a", "b"]')


def _split(flag: str, text: str) -> list[str]:
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise UserError(f'{flag}={text} cannot be read ({error}); write {HOW}') from error


def _lines(flag: str, name: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without outer blanks) of each line of a UTF-8 file that is not blank."""
    try:
        if name == STDIN:
            yield from _numbered(f'{flag}={name}', sys.stdin.buffer if sys.stdin else ())
            return
        with open(name, 'rb') as file:
            yield from _numbered(f'{flag}={name}', file)
    except OSError as error:
        raise UserError(f'{flag}={name} cannot be read: {error.strerror or error}') from error


def _numbered(where: str, lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode('utf-8-sig' if number == 1 else 'utf-8').strip()
        except UnicodeDecodeError as error:
            raise UserError(f'{where}, line {number} is no UTF-8 text ({error.reason}): convert the file') from error
        if text:
            yield number, text


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is no JSON list ({error}); write {HOW}') from error


def _as_list(where: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise UserError(f'{where} is {one_line(json.dumps(value))[:80]}, not a list of ids')
    for id_ in value:
        if isinstance(id_, bool) or not isinstance(id_, (str, int, float)):
            raise UserError(f'{where} holds {one_line(json.dumps(id_))[:80]}, which is no id: ids are texts or numbers')
    return [str(id_) for id_ in value]


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
