"""The loop over the cells of a study, which any number of processes may run at once in one folder."""
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.study.cell import PROTOCOLS, run_cell
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import Cell
from ssd4rec_jax.train.launch import Prepared


def run_cells(
    cells: list[Cell], folder: StudyFolder, prepare: Callable[[RunConfig], Prepared], *, minutes: float | None,
    stop_requested: Callable[[], bool], told: Callable[[str], None], finished: Callable[[], object],
    shown: Callable[[str], Reporter],
) -> list[Cell]:
    """Run the cells that are neither finished nor held by another process, and return those that failed.

    No cell begins once the minutes are over or a stop is requested. told: gets one line for each cell. finished: called
    after each cell. shown: makes of a cell's name what its training reports to. A cell that fails, as where its
    settings diverge or for a fault in a network, does not end the others.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    failed: list[Cell] = []
    held: set[str] = set()
    while True:
        ran = False
        for number, cell in enumerate(cells, start=1):
            if cell in failed or folder.cell(cell.name).exists():
                continue
            if stop_requested():
                return failed
            if end is not None and time.monotonic() >= end:
                told('the minutes are over: no other cell begins')
                return failed
            with folder.claimed(cell.name) as mine:
                if not mine and cell.name not in held:
                    held.add(cell.name)
                    told(f'[{number}/{len(cells)}] {cell.name}: another process runs it')
                if not mine or folder.cell(cell.name).exists():
                    continue
                ran = True
                reporter = shown(f'[{number}/{len(cells)}] {cell.name}')
                try:
                    record = run_cell(cell, folder, prepare, stop_requested, reporter)
                except Exception as error:
                    failed.append(cell)
                    told(f'[{number}/{len(cells)}] {cell.name}: failed: {error or type(error).__name__}')
                    if not isinstance(error, UserError):
                        logging.exception('%s failed', cell.name)
                    continue
                finally:  # Nothing of a network is of use to the next one, and a grid has many.
                    jax.clear_caches()
                    reporter.close()
            if record is None:
                told(f'[{number}/{len(cells)}] {cell.name}: stopped and saved')
                return failed
            told(f'[{number}/{len(cells)}] {_line(record)}')
            finished()
        if not ran:  # A second look finds the cells that another process has let go of.
            return failed


def _line(record: dict[str, Any]) -> str:
    values = ', '.join(f'{seen} {record["test"][seen]["NDCG@10"]:.4f}' for seen in PROTOCOLS)
    epochs = f', {record["epochs"]} epochs' if 'epochs' in record else ''
    return f'{record["cell"]}: test NDCG@10 {values}{epochs}, {record["seconds"]:.0f} s'
