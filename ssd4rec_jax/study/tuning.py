"""Settings for the rows of a study, each searched with the same number of trials, by validation alone."""
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from ssd4rec_jax.config.run import RunConfig, flat
from ssd4rec_jax.errors import ConfigError, TrainingError
from ssd4rec_jax.files import first_line, parse_json, write_json
from ssd4rec_jax.study.grid import Cell
from ssd4rec_jax.train.launch import Prepared
from ssd4rec_jax.tune.search import search
from ssd4rec_jax.tune.space import override, read_space

DEFAULT = Path(__file__).with_name('tuned.toml')


def tune_rows(
    cells: list[Cell], folder: Path, prepare: Callable[[RunConfig], Prepared], *, trials: int, space: Path = DEFAULT,
    minutes: float | None, stop_requested: Callable[[], bool], told: Callable[[str], None],
) -> list[str]:
    """Search so many trials for each network of the cells, with its first seed, in folder/ROW; the rows that failed.

    Each folder then has best.toml and, once all trials are there, tuned.json, which `tuned` reads: trials, validation
    NDCG@10, settings and the text of the space. The same call goes on, and several processes may share it. No trial
    begins once the minutes are over. A row fails where no trial has a result, which does not end the others.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.seed is not None:
            first.setdefault(cell.row.name, cell)
    spaces = {name: read_space(space, cell.config) for name, cell in first.items()}
    failed: list[str] = []
    for name, cell in first.items():
        if stop_requested():
            return failed
        left = None if end is None else (end - time.monotonic()) / 60
        if left is not None and left <= 0:
            told(f'the minutes are over: {name} and those after it have not got their {trials} trials')
            return failed
        try:
            found = search(
                cell.config, spaces[name], folder / name, prepare, trials=trials, minutes=left,
                stop_requested=stop_requested,
                told=lambda text, name=name: told(f'{name}: {text}'),  # type: ignore[misc]
            )
        except TrainingError as error:
            failed.append(name)
            told(f'{name}: failed: {error}')
            continue
        if found and found.trials < trials:
            told(f'{name} has got {found.trials} of its {trials} trials: the same command goes on')
        elif found:
            write_json(folder / name / 'tuned.json', {
                'row': name, 'trials': found.trials, 'validation_ndcg10': found.value, 'config': flat(found.config),
                'space': space.read_text(encoding='utf-8'),
            })
    return failed


def tuned(folder: Path, row: str, *, needed: bool) -> list[str]:
    """What a search found for a row: overrides of the settings that it tried, in folder/ROW/tuned.json.

    needed: whether a row that has no such file is refused, with a ConfigError; else nothing was found for it.
    """
    path = folder / row / 'tuned.json'
    remedy = f'search for the settings of {row} with --tune'
    try:
        found = parse_json(path.read_bytes())
        tried = tomllib.loads(found['space'])
        return [
            override(key, found['config'][key]) for section, settings in tried.items()
            for name in settings for key in [f'{section}.{name}']
        ]
    except FileNotFoundError:
        if not needed:
            return []
        raise ConfigError(f'--tuned={folder}: there is no {path}: {remedy}') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'--tuned={folder}: {path} cannot be read ({first_line(error)}): {remedy}') from error
