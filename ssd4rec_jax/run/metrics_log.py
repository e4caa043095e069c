"""metrics.jsonl: one JSON object a line, no step twice."""
import json
import os
from collections.abc import Callable
from pathlib import Path

from ssd4rec_jax.errors import UserError


class MetricsLog:
    """Append-only log of records; numbers must be finite (JSON has no NaN)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def write(self, record: dict) -> None:
        """Append one record; it is in the file when this returns."""
        try:
            with open(self.path, 'a') as file:
                file.write(json.dumps(record, allow_nan=False) + '\n')
        except OSError as error:
            raise UserError(f'{self.path} cannot be written: {error}') from error

    def read(self) -> list[dict]:
        """All whole records; a last line that a killed process left unfinished is not one."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text().splitlines(keepends=True):
            if not line.endswith('\n'):
                break
            records.append(json.loads(line))
        return records

    def keep(self, wanted: Callable[[dict], bool]) -> None:
        """Rewrite the log, atomically, with the wanted records alone: a resumed run writes the others again."""
        if not self.path.exists():
            return
        partial = self.path.with_name(f'.{self.path.name}.{os.getpid()}')
        try:
            partial.write_text(''.join(json.dumps(r) + '\n' for r in self.read() if wanted(r)))
            os.replace(partial, self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f'{self.path} cannot be written: {error}') from error
