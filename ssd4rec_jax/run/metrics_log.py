"""metrics.jsonl: one JSON object per line, and no step twice."""
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from absl import logging

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import first_line, parse_json, replace_file, unused_path


class MetricsLog:
    """An append-only log of records; numbers must be finite (JSON has no NaN)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def write(self, record: dict) -> None:
        """Append one record; it is in the file when this returns."""
        line = json.dumps(record, allow_nan=False) + '\n'
        try:
            with open(self.path, 'a') as file:
                file.write(line)
        except OSError as error:
            raise UserError(f'{self.path} cannot be written: {error}') from error

    def read(self) -> list[dict]:
        """All whole records. A last line that a killed process left unfinished is none; a damaged line is warned of."""
        lines = self._lines()
        damaged = _damaged(lines)
        if damaged:
            logging.warning(
                '%s:%d is not a record (%s): its %d damaged lines are left out', self.path, damaged[0],
                lines[damaged[0] - 1], len(damaged),
            )
        return [record for record in lines if isinstance(record, dict)]

    def keep(self, wanted: Callable[[dict], bool]) -> None:
        """Rewrite the log, atomically, with the wanted records alone: a resumed run writes the others again.

        A log with damaged lines is first copied to metrics.jsonl.damaged, with a warning.
        """
        lines = self._lines()
        if not self.path.exists():
            return
        damaged = _damaged(lines)
        if damaged:
            aside = unused_path(self.path.with_name(f'{self.path.name}.damaged'))
            try:
                shutil.copy2(self.path, aside)
            except OSError as error:
                aside.unlink(missing_ok=True)
                raise UserError(f'{aside} cannot be written: {error}') from error
            logging.warning(
                '%s:%d is not a record (%s): the log is kept as %s and goes on without its %d damaged lines', self.path,
                damaged[0], lines[damaged[0] - 1], aside.name, len(damaged),
            )
        kept = [json.dumps(record) + '\n' for record in lines if isinstance(record, dict) and wanted(record)]
        replace_file(self.path, lambda out: out.write(''.join(kept).encode()))

    def _lines(self) -> list[dict | str]:
        """The record of each whole line, or a text that says what is wrong with the line."""
        try:
            *whole, _ = self.path.read_bytes().split(b'\n')
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f'{self.path} cannot be read: {error}') from error
        return list(map(_parse, whole))


def _damaged(lines: list[dict | str]) -> list[int]:
    """The numbers, from 1, of the lines that are no records."""
    return [number for number, record in enumerate(lines, start=1) if isinstance(record, str)]


def _parse(line: bytes) -> dict | str:
    try:
        record = parse_json(line)
    except ValueError as error:
        return first_line(error)
    if not isinstance(record.get('step'), int) or not isinstance(record.get('kind', ''), str):
        return 'it holds no step and kind'
    return record
