"""The files of one training run."""
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from absl import logging

from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.files import Unsealed, first_line, parse_json, seal, unseal, unused_path, write_json

# What the final table shows. A result that was written before results were sealed is believed if it has these.
_SHOWN = {
    'dataset': str, 'best_epoch': int, 'epochs': int, 'parameters': int, 'train_seconds': float, 'targets/s': float,
    'tokens/s': float, 'packing_fill': float, 'backend': str, 'test': dict, 'valid': dict, 'popularity': dict,
}
# All that it may hold: another key is one of today's, damaged.
_UNSEALED_KEYS = {
    *_SHOWN, 'objective', 'loss', 'ssd_implementation', 'transition', 'parameters_sha256', 'peak_memory_bytes',
    'devices', 'processes', 'checkpoint_wait_seconds', 'versions', 'seed',
}
_SHOWN_METRICS = tuple(f'{metric}@{k}' for k in (10, 20) for metric in ('HR', 'NDCG', 'MRR'))


class RunFolder:
    """Paths inside a run's folder, and a lock so that two processes never train in it at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / 'config.json'
        self.metrics = self.path / 'metrics.jsonl'
        self.checkpoints = self.path / 'checkpoints'
        self.result = self.path / 'result.json'
        self.model = self.path / 'model'
        self.report = self.path / 'report.html'
        self.events = self.path / 'tensorboard'
        self._lock: Any = None

    def lock(self) -> None:
        """Create the folder and hold it until `release` or the end of the process; UserError if another one does."""
        held = f'another process is training in {self.path}: wait for it or name another --workdir'
        file = self.path / '.lock'
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(file, 'w')  # noqa: SIM115  # stays open, as the lock lasts as long as the file is
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            moved = not file.exists() or not os.path.samestat(file.stat(), os.fstat(self._lock.fileno()))
        except BlockingIOError as error:
            raise UserError(held) from error
        except OSError as error:
            raise UserError(f'the workdir {self.path} cannot be written: {error}') from error
        if moved:  # The folder that was locked has just been set aside by another process.
            raise UserError(held)

    def release(self) -> None:
        """Let another process, or another call in this one, hold the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_seen(self) -> None:
        """UserError where the folder that the run's first process has locked is not to be seen from this one."""
        if not (self.path / '.lock').exists():
            raise UserError(
                f'the workdir {self.path} of process 0 is not seen here: --workdir has to lie on a file system of '
                'all hosts'
            )

    def read_json(self, path: Path) -> dict | None:
        """The object in one of the run's JSON files, None where there is no file; ConfigError if it is damaged."""
        try:
            return parse_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f'{path} cannot be read ({first_line(error)}); restore it or name another --workdir'
            ) from error

    def write_result(self, result: dict) -> None:
        """Write result.json, sealed against changes."""
        write_json(self.result, seal(result))

    def result_of_earlier(self) -> dict | None:
        """The same for another run, in whose folder nothing is changed: ConfigError if its result.json is damaged."""
        try:
            return self._sound_result()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f'{self.result} is damaged ({first_line(error)}): run its training command again, which computes it '
                'from the best checkpoint'
            ) from error

    def read_result(self) -> dict | None:
        """The content of result.json, None where there is none.

        A damaged one is kept beside it as result.json.damaged, with a warning, and counts as absent: the training
        command computes it again from the best checkpoint. UserError where the disk fails to read it.
        """
        try:
            return self._sound_result()
        except FileNotFoundError:
            return None
        except (IsADirectoryError, ValueError) as error:
            aside = unused_path(self.result.with_name(f'{self.result.name}.damaged'))
            try:
                self.result.rename(aside)
            except OSError as failure:
                raise UserError(
                    f'{self.result} is damaged ({first_line(error)}) and cannot be set aside ({failure})'
                ) from failure
            logging.warning(
                '%s is damaged (%s): kept as %s and computed again', self.result, first_line(error), aside.name
            )
            return None
        except OSError as error:
            raise UserError(f'{self.result} cannot be read ({first_line(error)}): try again') from error

    def _sound_result(self) -> dict:
        """The content of result.json; ValueError where it is not what was written."""
        result = parse_json(self.result.read_bytes())
        try:
            return unseal(result)
        except Unsealed:
            _check_unsealed(result)
            return result


def _check_unsealed(result: dict) -> None:
    """ValueError unless everything that the final table shows is there and is of its kind."""
    if unknown := sorted(set(result) - _UNSEALED_KEYS):
        raise ValueError(f'{unknown[0]} is no key of it')
    for key, kind in _SHOWN.items():
        value = result.get(key)
        numeric = (int, float) if kind is float else kind
        if not isinstance(value, numeric) or isinstance(value, bool):
            raise ValueError(f'{key} is {json.dumps(value)[:80]}')
    baselines = [result[name].get('test') for name in ('popularity', 'transition') if name in result]
    for table in (result['test'], result['valid'], *baselines):
        for name in _SHOWN_METRICS:
            value = table.get(name) if isinstance(table, dict) else None
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f'{name} is {json.dumps(value)[:80]}')
