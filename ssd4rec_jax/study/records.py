"""The records of a study's finished cells: of one study, one log, and the settings that its command asks for."""
from collections.abc import Callable
from typing import Any

from ssd4rec_jax.config.run import RunConfig, differences, from_dict
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import parse_json
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import Cell, Study
from ssd4rec_jax.train.launch import Prepared

Records = dict[str, dict[str, Any] | None]  # the record of each cell by its name, None where it has not run


def read_records(grid: list[Cell], folder: StudyFolder) -> Records:
    """The records of all cells. ConfigError where one has another config, as after another --set, or another log."""
    records = {cell.name: folder.read(cell.name) for cell in grid}
    logs = set()
    for cell in grid:
        if (record := records[cell.name]) is None:
            continue
        if different := differences(from_dict(record['config']), cell.config):
            raise ConfigError(
                f'{folder.cell(cell.name)} is of another config ({"; ".join(different)}): name another --output'
            )
        logs.add(record['fingerprint'])
    if len(logs) > 1:
        raise ConfigError(f'{folder.path} holds cells of different logs: name another --output')
    return records


def check_study(study: Study, folder: StudyFolder) -> None:
    """ConfigError where the folder is a file, or holds tables that are not of this study, which would replace them."""
    try:
        there = parse_json(folder.summary.read_bytes())['study']
    except NotADirectoryError as error:
        raise ConfigError(f'--output={folder.path} is a file, or lies in one: name a folder') from error
    except FileNotFoundError as error:
        for file in folder.tables:  # They are written after the cells.
            if file.exists() and not folder.has_cells():
                raise ConfigError(f'{file} is not of a study: name another --output') from error
        return
    except (OSError, ValueError, KeyError, TypeError):
        return  # What is damaged is written anew.
    if there != study.name:
        raise ConfigError(f'{folder.path} holds the study {there}: name another --output')


def check_log(
    grid: list[Cell], records: Records, folder: StudyFolder, prepare: Callable[[RunConfig], Prepared]
) -> None:
    """ConfigError where finished cells are of another log than the one that there is now."""
    there = {record['fingerprint'] for record in records.values() if record}
    if there and there != {prepare(grid[0].config)[0].fingerprint}:
        raise ConfigError(f'{folder.path} holds cells of another log: name another --output')
