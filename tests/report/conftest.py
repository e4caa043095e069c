"""A small run whose ids are markup, and what was written while it trained."""
import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset, save_dataset
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.report.judged import Judged, judge
from ssd4rec_jax.report.run_report import LivePage, write_run_report
from ssd4rec_jax.reporter import Reporter, Reporters
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import load_run, write_config
from ssd4rec_jax.show.tensorboard import TensorBoard
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset, trainer_in

# Where it is not escaped, each asks for a picture that is not there.
EVIL = '<img src="gone-{}.png" onerror="console.error(1)"><script>console.error({})</script>'
TITLED = 'item 2', 'Brazil & <b>Dali</b> (1985)'


class Written(NamedTuple):
    """folder: of a finished run. page: that of the run. live: its page after the first evaluation.

    judged: what its best parameters do, which takes longest.
    """

    folder: RunFolder
    dataset: SequenceDataset
    page: Path
    live: Path
    result: dict
    judged: Judged


class _Keeps(Reporter):
    """Keeps the page as the first evaluation left it."""

    def __init__(self, page: Path, copy: Path):
        self._page, self._copy = page, copy

    def evaluation(self, record):
        if not self._copy.exists():
            shutil.copy(self._page, self._copy)


@pytest.fixture(scope='session')
def written(tmp_path_factory) -> Written:
    root = tmp_path_factory.mktemp('report')
    dataset = dataclasses.replace(
        tiny_dataset(), user_ids=TextIds.of(EVIL.format(u, u) for u in range(60)),
        item_ids=TextIds.of('item 2' if i == 2 else EVIL.format(i, i) for i in range(1, 31)),
    )
    save_dataset(dataset, root / 'log' / 'prepared')
    (root / 'log' / 'u.item').write_text('|'.join(TITLED) + '|1985\n', 'latin-1')
    folder = RunFolder(root / 'run')
    folder.path.mkdir()
    write_config(folder, RunConfig('interactions', MODEL, DATA, TRAIN), root / 'log' / 'prepared')
    onlookers = Reporters(LivePage(folder), _Keeps(folder.report, root / 'live.html'), TensorBoard(folder))
    trainer_in(folder.path, dataset=dataset, reporter=onlookers).run()
    onlookers.close()
    page = write_run_report(folder)
    result = json.loads(folder.result.read_text())
    return Written(folder, dataset, page, root / 'live.html', result, judge(load_run(folder.path)))
