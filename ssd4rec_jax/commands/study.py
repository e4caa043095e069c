"""Train a grid of networks or settings; make its tables and figures.

    ssd4rec study --study=overall --dataset=ml-100k --seeds=3 --output=runs/overall --set=model.hidden_size=64
    ssd4rec study --study=recipe|beta|mask_ratio|max_length|efficiency|layers|backward_order|components|packing ...
    ssd4rec study --study=overall --dataset=ml-100k --output=runs/overall --minutes=60 --rows=sasrec,ssd4rec-best
    ssd4rec study --study=overall --dataset=ml-100k --output=runs/search --tune=20
    ssd4rec study --study=overall --dataset=ml-100k --output=runs/tuned --tuned=runs/search/tuned

The same command again goes on with the cells that are not finished, and several at once share them. The folder holds
the runs, a record of each finished cell, study.json, tables.md, tables.tex and figures. docs/study.md describes them.
"""
import functools
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.config_flags import given, overridden
from ssd4rec_jax.commands.dataset_flags import DATASET, prepared_dataset
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.commands.study_flags import MINUTES, SPACE, STUDY
from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.files import locked, replace_file, write_json
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.presets import is_measured, preset_config
from ssd4rec_jax.show.output import one_line
from ssd4rec_jax.show.terminal import OneOfMany
from ssd4rec_jax.study.figures import draw
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import DEFAULT, Cell, Study, cells, chosen, distinct, known, read_study
from ssd4rec_jax.study.records import check_log, check_study, read_records
from ssd4rec_jax.study.run import run_cells
from ssd4rec_jax.study.summary import summarize
from ssd4rec_jax.study.tables import latex, markdown
from ssd4rec_jax.study.tuning import DEFAULT as TUNED_SPACE
from ssd4rec_jax.study.tuning import tune_rows, tuned
from ssd4rec_jax.train.stop_signals import StopSignals
from ssd4rec_jax.tune.space import read_space

_STUDIES = flags.DEFINE_string('studies', None, 'TOML file of studies; if not given, the one of this package.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many seeds each row is trained with, from train.seed on.', lower_bound=1)
_ROWS = flags.DEFINE_list('rows', [], 'Names of rows to run alone, separated by commas; all of the study if not given.')

_TUNE = flags.DEFINE_integer(
    'tune', 0, 'Search so many trials of settings for each network, in OUTPUT/tuned, and train no cell.', lower_bound=0
)
_TUNED = flags.DEFINE_string('tuned', None, 'Folder of such a search, OUTPUT/tuned, whose settings the networks take.')
_PATH_FLAG = re.compile('--?(?:data_dir|output|runs|tuned|studies|config|space|train_file|valid_file|test_file)')
_RUNS = flags.DEFINE_string('runs', None, 'Folder that holds the trainings; OUTPUT/runs if not given.')


def main() -> int:
    if not STUDY.value:
        raise ConfigError('give --study, the name of a study')
    if _TUNE.value and _TUNED.value:
        raise ConfigError('give --tune, which searches, or --tuned, what a search found, not both')
    console = Console(highlight=False, soft_wrap=True)

    def told(text: str) -> None:
        console.print(one_line(text), markup=False)  # What an error says may hold anything.

    enable_compilation_cache()
    study = read_study(STUDY.value, Path(_STUDIES.value) if _STUDIES.value else DEFAULT)
    names = {row.name for row in chosen(study, [name.strip() for name in _ROWS.value])}
    grid, same = distinct(_grid(study), study.against)
    if _TUNED.value:
        searched, left = Path(_TUNED.value), [row for row in study.rows if row.name not in same]
        grid = _grid(study._replace(rows=left), lambda row: tuned(searched, row, needed=row in names))
    folder = StudyFolder(
        Path(OUTPUT.value or Path('runs') / f'{DATASET.value}-{study.name}').resolve(),
        Path(_RUNS.value).resolve() if _RUNS.value else None,
    )
    check_study(study, folder)
    records = read_records(grid, folder)
    if MINUTES.value != 0:  # That writes tables anew and asks for no log.
        check_log(grid, records, folder, prepared_dataset)
    told(f'study: {folder.path}, {len(grid)} cells. {study.about}')
    for row, other in same.items():
        told(f'{row} has the settings of {other} here and is left out')
    signals = StopSignals()
    asked = [cell for cell in grid if cell.row.name in names]
    if _TUNE.value:
        if all(cell.row.counted for cell in asked):
            raise ConfigError(f'--tune: no network to search for in {", ".join(sorted(names))}')
        space = Path(SPACE.value) if SPACE.value else TUNED_SPACE
        _check_not_set(space, next(cell.config for cell in asked if not cell.row.counted))
        failed_rows = tune_rows(
            asked, folder.path / 'tuned', prepared_dataset, trials=_TUNE.value, space=space, minutes=MINUTES.value,
            stop_requested=signals.requested, told=told,
        )
        return signals.exit_code if signals.requested() else bool(failed_rows)
    failed = run_cells(
        asked, folder, prepared_dataset, minutes=MINUTES.value,
        stop_requested=signals.requested, told=told, finished=lambda: _summary(study, grid, folder),
        shown=OneOfMany,
    )
    summary = _summary(study, grid, folder, with_figures=True)
    told(f'{summary["finished"]} of {summary["cells"]} cells are finished: {folder.path / "tables.md"}')
    if signals.requested() and not all(folder.cell(cell.name).exists() for cell in asked):
        told('stopped: the same command goes on with the study')
        return signals.exit_code
    return 1 if failed else 0


def _grid(study: Study, found: Callable[[str], list[str]] = lambda row: []) -> list[Cell]:
    """All cells of the study with the flags' settings. found: as in `cells`."""
    said = 'model.name', study.x
    for source, overrides in given().items():
        for one in overrides:
            if one.partition('=')[0] in said:
                raise ConfigError(f'{source}{one}: the rows of the study {study.name} say that themselves')
    used: set[str] = set()

    def with_flags(config: RunConfig) -> RunConfig:
        there = known([one for overrides in given().values() for one in overrides], config)
        used.update(there)
        return overridden(config, there.__contains__)

    @functools.cache
    def preset(name: str) -> RunConfig:
        import jax

        # On a log of one's own, where nothing was measured, the settings that fit it take the place of the best ones.
        fitting = name if name == 'published' or is_measured(DATASET.value) else 'auto'
        return preset_config(
            DATASET.value, fitting, lambda published: prepared_dataset(published)[0], jax.default_backend
        )[0]

    grid = cells(study.rows, _SEEDS.value, preset, with_flags, found)
    for source, overrides in given().items():
        if unused := [one for one in overrides if one not in used]:
            apply_overrides(grid[0].config, unused, source=source)  # It says what is wrong with the first of them.
    return grid


def _check_not_set(space: Path, config: RunConfig) -> None:
    """ConfigError where a flag sets what a search tries: it would be lost here, and win over what was found later."""
    tried = read_space(space, config)
    for source, overrides in given().items():
        for one in overrides:
            if one.partition('=')[0] in tried:
                raise ConfigError(f'{source}{one}: the search tries that setting: leave it out here or of --space')


def _summary(study: Study, grid: list[Cell], folder: StudyFolder, *, with_figures: bool = False) -> dict[str, Any]:
    """Write study.json, the tables and, if asked for, the figures, and return the summary."""
    # Where the log and the folder lie on this machine is nobody else's matter.
    words = _without_paths(sys.argv[1:])
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path):  # What is written last has seen the most cells.
        summary = summarize(study, grid, folder, shlex.join(['ssd4rec', 'study', *words]))
        write_json(folder.summary, summary)
        for file, text in zip(folder.tables, (markdown(summary), latex(summary)), strict=True):
            replace_file(file, lambda out, text=text: out.write(text.encode()))  # type: ignore[misc]
        try:
            if with_figures:
                draw(summary, folder.figures)
        except UserError as error:  # They are drawn when the command is given again.
            print(f'no figures: {error}')
    return summary


def _without_paths(words: list[str]) -> list[str]:
    """The words of a command with DIR for what its flags of paths are given, behind = or as the next word."""
    shown: list[str] = []
    for before, word in itertools.pairwise(['', *words]):
        shown.append('DIR' if _PATH_FLAG.fullmatch(before) else re.sub(f'^({_PATH_FLAG.pattern}=).*', r'\1DIR', word))
    return shown


if __name__ == '__main__':
    run(main)
