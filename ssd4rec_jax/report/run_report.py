"""The page of a run, written: whole once it is finished, and kept fresh while it trains."""
from pathlib import Path

from absl import logging

from ssd4rec_jax.data.titles import titles_beside
from ssd4rec_jax.errors import CheckpointError, UserError
from ssd4rec_jax.report.facts import read_facts
from ssd4rec_jax.report.judged import Judged, judge
from ssd4rec_jax.report.page import write_page
from ssd4rec_jax.report.run_page import run_page
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import load_run


def write_run_report(folder: RunFolder, output: Path | None = None, *, log: Path | None = None) -> Path:
    """Write the page of a run and return its path, the run's report.html if no other is named.

    log: where the raw log lies, beside which titles are looked for; None looks where its prepared data lies. A run
    without an evaluated checkpoint gets a page of what it has. UserError where there is no run or nothing can be
    written.
    """
    facts = read_facts(folder)
    judged: Judged | None = None
    try:
        judged = judge(load_run(folder.path))
    except CheckpointError as error:
        logging.warning('the page shows no recommendations: %s', error)
    write_page(output or folder.report, run_page(facts, judged, titles_beside(log or facts.prepared.parent)))
    return output or folder.report


class LivePage(Reporter):
    """Writes the run's page anew after each evaluation, without what needs the model."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._data: tuple[tuple[str, str], ...] | None = None

    def evaluation(self, record: dict) -> None:
        """Show the evaluation, which metrics.jsonl holds by now."""
        try:
            facts = read_facts(self._folder, self._data)
            self._data = facts.data
            write_page(self._folder.report, run_page(facts, None, {}))
        except UserError as error:  # A page is no reason to end a training.
            logging.warning('the page of the run is not fresh: %s', error)
