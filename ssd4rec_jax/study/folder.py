"""The files of a study."""
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import claimed, first_line, parse_json, replace_file, seal, unseal, write_json


class StudyFolder:
    """Paths inside a study's folder.

        runs/NAME-SEED/         the training of a cell, an ordinary run; `runs` is another folder that holds them
        cells/NAME-SEED.json    what is kept of it (ssd4rec_jax.study.cell); it is there once the cell is finished
        cells/NAME-SEED.npz     one value for each held-out item of the test: `users` and `items`, internal ids;
                                `history_length`, the items before it; `item_popularity`, how often it occurs in
                                training; `in` and `out`, its rank with seen items in and out (0: left out as seen)
        study.json              the summary (ssd4rec_jax.study.summary)
        tables.md, tables.tex, figures/
    """

    def __init__(self, path: Path, runs: Path | None = None):
        self.path = path
        self._runs = runs or path / 'runs'
        self.summary = path / 'study.json'
        self.tables = path / 'tables.md', path / 'tables.tex'
        self.figures = path / 'figures'

    def run(self, name: str) -> Path:
        """The folder of a cell's training."""
        return self._runs / name

    def cell(self, name: str) -> Path:
        """The file of a finished cell."""
        return self.path / 'cells' / f'{name}.json'

    def has_cells(self) -> bool:
        """Whether any cell of a study is finished."""
        return any(self.cell('').parent.glob('*.json'))

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold a cell against other processes; False where another one holds it."""
        file = self.path / 'cells' / f'.{name}.lock'
        with claimed(file) as mine:
            yield mine
            if mine and self.cell(name).exists():
                file.unlink(missing_ok=True)

    def write(self, name: str, record: dict[str, Any], ranks: dict[str, np.ndarray]) -> None:
        """Keep a finished cell; its ranks are there before it is."""
        stored = io.BytesIO()
        np.savez_compressed(stored, **ranks)  # type: ignore[arg-type]
        replace_file(self.cell(name).with_suffix('.npz'), lambda out: out.write(stored.getvalue()))
        write_json(self.cell(name), seal(record))

    def read(self, name: str) -> dict[str, Any] | None:
        """What is kept of a cell, None where it is not finished; ConfigError where its file is damaged."""
        path = self.cell(name)
        try:
            return unseal(parse_json(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f'{path} is damaged ({first_line(error)}): remove it, and the cell runs again') from error
