"""The files of one training run."""
import fcntl
import json
from pathlib import Path

from ssd4rec_jax.errors import ConfigError, UserError


class RunFolder:
    """Paths inside a run's folder, and a lock so that two processes never train in it at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / 'config.json'
        self.metrics = self.path / 'metrics.jsonl'
        self.checkpoints = self.path / 'checkpoints'
        self.result = self.path / 'result.json'
        self._lock = None

    def lock(self) -> None:
        """Create the folder and hold it for this process until it ends; UserError if another one does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / '.lock', 'w')
        except OSError as error:
            raise UserError(f'the workdir {self.path} cannot be written: {error}') from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f'another process is training in {self.path}: wait for it or name another --workdir'
            ) from error

    def check_seen(self) -> None:
        """UserError where the folder that the run's first process has locked is not to be seen from this one."""
        if not (self.path / '.lock').exists():
            raise UserError(
                f'the workdir {self.path} of process 0 is not seen here: --workdir has to lie on a file system of all hosts'
            )

    def read_json(self, path: Path) -> dict | None:
        """The object in one of the run's JSON files, None where the file does not exist."""
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f'{path} cannot be read ({error}); restore it or name another --workdir') from error
