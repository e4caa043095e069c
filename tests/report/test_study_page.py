"""The page of a study of which some cells have run."""
import json

import pytest

from ssd4rec_jax.commands import report
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.files import write_json
from ssd4rec_jax.rank.baselines import BASELINES
from ssd4rec_jax.rank.metrics import ranking_metrics
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import cells, read_study
from ssd4rec_jax.study.run import run_cells
from ssd4rec_jax.study.summary import summarize
from tests.browser import DESKTOP, PHONE
from tests.commands.in_process import call
from tests.report.reading import page
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset

GRID = '''
[small]
about = "Does <b>it</b> help?"
[[small.rows]]
counted = "*"
[[small.rows]]
name = "forward"
set = {"model.beta" = 0.0}
'''
DRAWING = '''<svg xmlns="http://www.w3.org/2000/svg" width="900" height="300"><script>console.error(1)</script>
<image href="gone.png" width="9" height="9"/></svg>'''


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """The folder of a study whose rankings that count have run, and whose training has not."""
    path = tmp_path_factory.mktemp('study')
    (path / 'studies.toml').write_text(GRID)
    small, folder = read_study('small', path / 'studies.toml'), StudyFolder(path)
    base = RunConfig('interactions', MODEL, DATA, TRAIN)
    grid = cells(small.rows, 2, lambda preset: base, lambda config: config)
    run_cells(
        [cell for cell in grid if cell.row.counted], folder, lambda config: (tiny_dataset(), path / 'log'),
        minutes=None, stop_requested=lambda: False, told=lambda text: None, finished=lambda: None,
        shown=lambda name: Reporter(),
    )
    folder.figures.mkdir()
    (folder.figures / 'history_length.svg').write_text(DRAWING)
    write_json(folder.summary, summarize(small, grid, folder, "ssd4rec study --study=small '--set=a=<i>'"))
    done = call(report.main, f'--study={path}')
    assert done.returncode == 0 and done.stdout == f'{path}/report.html\n', done.stderr
    return folder


def test_a_browser_finds_no_error_no_request_and_no_overflow(browser, study):
    path = study.path / 'report.html'
    for width in (PHONE, DESKTOP):
        seen = browser.open(path, width=width)
        assert (seen.console, seen.requests, seen.overflows) == ([], [path.as_uri()], False)
    assert browser.run('return [...document.images].map(each => each.naturalWidth)') == [900]


def test_cells_that_have_run_have_their_figures_and_others_are_empty(study):
    found, dataset = page(study.path / 'report.html'), tiny_dataset()
    (ranking, *_), (cost,) = ([rows for caption, rows in found.tables.items() if caption.startswith(start)]
                              for start in ('Ranking', 'Cost'))
    columns = ranking[0]
    rows = {row[0]: dict(zip(columns, row, strict=True)) for row in ranking[1:]}
    assert set(rows) == {*BASELINES, 'forward'} == {row[0] for row in cost[1:]}
    for name, ranks_of in BASELINES.items():
        for metric, value in ranking_metrics(ranks_of(dataset, 'test')).items():
            assert rows[name][metric] == f'{value:.4f}'
    assert set(list(rows['forward'].values())[1:]) == {''}
    assert f'{len(BASELINES)} of {len(BASELINES) + 2}' in found.texts
    assert 'b' not in found.tags and 'i' not in found.tags and 'Does <b>it</b> help?' in found.text


@pytest.mark.parametrize('change, text', [
    (lambda summary: {**summary, 'format': 99}, 'is of another version'),
    (lambda summary: {**summary, 'rows': [{}]}, 'is damaged'), (lambda summary: [], 'cannot be read'),
])
def test_a_damaged_study_is_refused(study, tmp_path, change, text):
    summary = json.loads(study.summary.read_text())
    (tmp_path / 'study.json').write_text(json.dumps(change(summary)))
    done = call(report.main, f'--study={tmp_path}')
    assert done.returncode == 1 and text in done.stderr and 'run the command of the study again' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['study.json']
