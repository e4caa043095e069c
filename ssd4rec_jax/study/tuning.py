"""Settings for the rows of a study, each searched with the same number of trials, by validation alone."""
import tomllib
from collections.abc import Callable
from pathlib import Path

from ssd4rec_jax.config.run import RunConfig, flat
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import first_line, write_json
from ssd4rec_jax.study.grid import Cell
from ssd4rec_jax.train.launch import Prepared
from ssd4rec_jax.tune.search import search
from ssd4rec_jax.tune.space import override, read_space

DEFAULT = Path(__file__).with_name('tuned.toml')


def tune_rows(
    cells: list[Cell], folder: Path, prepare: Callable[[RunConfig], Prepared], *, trials: int, space: Path = DEFAULT,
    minutes: float | None, stop_requested: Callable[[], bool], told: Callable[[str], None],
) -> None:
    """Search so many trials for each network of the cells, with its first seed, in folder/ROW.

    Each folder then has best.toml, which `tuned` reads, and tuned.json: trials, validation NDCG@10, settings and the
    text of the space. The same call goes on, and several processes may share it. minutes: for each row.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.seed is not None:
            first.setdefault(cell.row.name, cell)
    for name, cell in first.items():
        if stop_requested():
            return
        found = search(
            cell.config, read_space(space, cell.config), folder / name, prepare, trials=trials, minutes=minutes,
            stop_requested=stop_requested, told=lambda text, name=name: told(f'{name}: {text}'),  # type: ignore[misc]
        )
        if found:
            write_json(folder / name / 'tuned.json', {
                'row': name, 'trials': found.trials, 'validation_ndcg10': found.value, 'config': flat(found.config),
                'space': space.read_text(encoding='utf-8'),
            })


def tuned(folder: Path, row: str) -> list[str]:
    """The overrides that a search found for a row; ConfigError where there is none in folder/ROW/best.toml."""
    path = folder / row / 'best.toml'
    try:
        sections = tomllib.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'--tuned={folder}: {path} cannot be read ({first_line(error)}): search for the settings of {row} with '
            '--tune'
        ) from error
    return [
        override(f'{section}.{name}', value) for section, settings in sections.items()
        for name, value in settings.items()
    ]
