"""The page of a run: what a browser makes of it, and that its figures are those of the run."""
import re
import shutil
from importlib import resources

import numpy as np
import pytest

from ssd4rec_jax.commands import report
from ssd4rec_jax.rank.baselines import BASELINES, popularity_ranks
from ssd4rec_jax.rank.metrics import ranking_metrics
from ssd4rec_jax.rank.report import metric_frame
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.report.run_report import write_run_report
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import load_run, read_config, write_config
from ssd4rec_jax.show.terminal import METRICS
from tests.browser import DESKTOP, PHONE
from tests.commands.in_process import call
from tests.report.conftest import TITLED
from tests.report.reading import page
from tests.tiny import history

SEEN_IN = 'Ranked among all items (seen in, as published tables do), with 95% bootstrap intervals over users'
SEEN_OUT = 'Ranked among the items that a user has not seen yet (seen out), with 95% bootstrap intervals over users'


@pytest.mark.parametrize('width', [PHONE, DESKTOP])
def test_a_browser_finds_no_error_no_request_and_no_overflow(browser, written, width):
    for path in (written.page, written.live):
        for dark in (False, True):
            seen = browser.open(path, width=width, dark=dark)
            # A page of a run that trains comes anew by itself where the machine is slow.
            assert (seen.console, set(seen.requests), seen.overflows) == ([], {path.as_uri()}, False)
    browser.open(written.page, width=width)
    browser.run('document.querySelectorAll("details").forEach(each => each.open = true)')
    assert not browser.seen().overflows
    # What is wider than the page scrolls inside its own box, which the keyboard reaches.
    boxes = browser.run(
        'return [...document.querySelectorAll("table")].map(t => [t.parentElement.className, t.parentElement.tabIndex])'
    )
    assert boxes and all(box == ['scroll', 0] for box in boxes)


def test_ids_are_text_and_titles_stand_before_them(written):
    found = page(written.page)
    assert not {'img', 'script', 'b'} & set(found.tags)
    assert '<img src="gone-' in found.text and '<script>console.error(' in found.text
    assert TITLED[1] in found.texts and TITLED[0] in found.texts


def test_headings_go_down_one_level_at_a_time_and_every_chart_is_named(written):
    levels, source = page(written.page).headings, written.page.read_text()
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    drawings = re.findall(r'<svg ([^>]*)>', source)
    assert len(drawings) > 6 and all('aria-label="' in one or 'aria-hidden="true"' in one for one in drawings)


def test_colours_stand_out_from_what_is_behind_them():
    """The contrast that WCAG 2 asks for: 4.5 of text, 3 of lines and marks."""
    style = (resources.files('ssd4rec_jax.report') / 'templates' / 'style.css').read_text()

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[at:at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    themes = re.findall(r':root \{(.*?)\}', style, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        of = {name: luminance(colour) for name, colour in re.findall(r'--(\w+): (#\w{6})', theme)}
        for name, least in {'ink': 4.5, 'muted': 4.5, 'accent': 4.5, **{f's{n}': 3 for n in range(5)}}.items():
            for behind in ('page', 'box', *(['mark'] if name in ('ink', 'muted') else [])):
                high, low = sorted([of[name], of[behind]], reverse=True)
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


def test_the_table_has_the_figures_of_the_result_and_their_intervals(written):
    tables = page(written.page).tables
    head, own, *baselines = tables[SEEN_IN]
    assert head == ['', *METRICS] and [row[0] for row in (own, *baselines)] == ['SSD4Rec', *BASELINES]
    assert [cell.split(' | ')[0] for cell in own[1:]] == [f'{written.result["test"][m]:.4f}' for m in METRICS]
    for name, *cells in baselines:
        expected = ranking_metrics(BASELINES[name](written.dataset, 'test'))
        assert [cell.split(' | ')[0] for cell in cells] == [f'{expected[m]:.4f}' for m in METRICS]
        assert written.result.get(name, {'test': expected})['test'] == pytest.approx(expected)
    ranks = popularity_ranks(written.dataset, 'test')
    frame = metric_frame(ranks, (10, 20))
    assert [cell.split(' | ')[1] for cell in dict((row[0], row[1:]) for row in baselines)['popularity']] == [
        f'{low:.4f} to {high:.4f}' for low, high in zip(frame['low'], frame['high'], strict=True)
    ]
    assert [row[0] for row in tables[SEEN_OUT][1:]] == ['SSD4Rec', *BASELINES]
    assert tables[SEEN_OUT][1:] != tables[SEEN_IN][1:]


def test_the_curves_and_the_settings_are_those_of_the_run(written):
    tables = page(written.page).tables
    head, *rows = tables['Validation after each epoch']
    assert [row[0] for row in rows] == ['1', '2'] and head[3:9] == list(METRICS)
    best = rows[written.result['best_epoch'] - 1]
    assert best[3:9] == [f'{written.result["valid"][m]:.4f}' for m in METRICS] and best[-1] == 'best'
    assert float(rows[1][1].replace(',', '')) == pytest.approx(written.result['train_seconds'], abs=0.051)
    settings = {row[0]: row[1] for row in tables['All settings, their defaults and what they mean'][1:]}
    assert settings['model.hidden_size'] == '8' and settings['train.max_epochs'] == '2'
    assert f'{written.result["parameters"]:,}' in page(written.page).texts


@pytest.mark.slow
def test_the_weight_of_followers_is_shown_where_validation_chose_it(written, tmp_path):
    assert 'Weight of followers' not in page(written.page).texts
    shutil.copytree(written.folder.path, tmp_path / 'run')
    folder = RunFolder(tmp_path / 'run')
    folder.write_result(folder.read_result() | {'follower_weight': 1.5})
    texts = page(write_run_report(folder)).texts
    assert texts[texts.index('Weight of followers') + 1] == '1.5'


def test_near_items_are_those_of_a_loop(written):
    saved = load_run(written.folder.path)
    table = np.asarray(saved.network.whole(saved.params)['item_embedding'], np.float64)
    counts = np.bincount(written.dataset.items, minlength=31)
    ids = [None, *written.dataset.item_ids.tolist()]
    shown = written.judged.items
    assert [each.item for each in shown] == [ids[i] for i in sorted(range(1, 31), key=lambda i: (-counts[i], i))[:10]]
    for each in shown:
        at = ids.index(each.item)
        cosines = {}
        for other in range(1, 31):
            if other != at:
                norms = np.sqrt(table[at] @ table[at]) * np.sqrt(table[other] @ table[other])
                cosines[ids[other]] = table[at] @ table[other] / norms
        nearest = sorted(cosines, key=lambda item: -cosines[item])[:5]
        assert [item for item, _ in each.near] == nearest and each.count == counts[at]
        np.testing.assert_allclose([cosine for _, cosine in each.near], [cosines[i] for i in nearest], rtol=1e-4)
        assert f'{each.near[0][1]:.2f}' in page(written.page).texts


def test_the_users_are_shown_what_is_recommended_for_their_history(written):
    judged, dataset = written.judged, written.dataset
    users, items = dataset.user_ids.tolist(), dataset.item_ids.tolist()
    lengths = [each.length for each in judged.users]
    assert len(judged.users) == 10 and lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (dataset.lengths.min() - 1, dataset.lengths.max() - 1)
    assert not judged.seen_out, 'random users come back to items, so lists have to offer them'
    before = [[items[i - 1] for i in history(dataset, users.index(each.user), 1)] for each in judged.users]
    expected = Recommender.load(written.folder.path).recommend(histories=before, k=10)
    for number, each in enumerate(judged.users):
        assert each.newest == before[number][-6:] and each.length == len(before[number])
        assert each.items == expected.filter(user=number)['item'].to_list()
        assert each.target == items[history(dataset, users.index(each.user))[-1] - 1]
        assert (each.rank <= 10) == (each.target in each.items)
        if each.target in each.items:
            assert each.items.index(each.target) + 1 == each.rank


def test_while_it_trains_the_page_shows_the_validation_and_looks_at_itself_again(written):
    live, source = page(written.live), written.live.read_text()
    assert 'http-equiv="refresh"' in source and 'http-equiv="refresh"' not in written.page.read_text()
    rows = live.tables['Validation after each epoch']
    assert rows[1:] == page(written.page).tables['Validation after each epoch'][1:2]
    assert 'Training run, not finished' in live.texts and SEEN_IN not in live.tables
    assert 'Ten users' not in live.texts and 'Ten users' in page(written.page).texts


def test_the_command_writes_where_it_is_told(written, tmp_path):
    done = call(report.main, f'--workdir={written.folder.path}', f'--output={tmp_path}/page.html')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{tmp_path}/page.html\n' and [p.name for p in tmp_path.iterdir()] == ['page.html']
    assert page(tmp_path / 'page.html').tables == page(written.page).tables


def test_a_run_that_has_trained_nothing_yet_has_a_page_too(written, tmp_path):
    config, prepared = read_config(written.folder)
    write_config(RunFolder(tmp_path), config, prepared)
    done = call(report.main, f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    found = page(tmp_path / 'report.html')
    assert 'No epoch has ended yet.' in found.text and 'Nothing to draw yet.' in found.text


@pytest.mark.slow
def test_a_finished_run_without_its_log_has_a_page_and_a_warning(written, tmp_path, caplog):
    shutil.copytree(written.folder.path, tmp_path / 'run')
    folder = RunFolder(tmp_path / 'run')
    folder.metrics.unlink()
    with caplog.at_level('WARNING'):
        found = page(write_run_report(folder))
    assert 'metrics.jsonl is gone or empty: there are no curves' in caplog.text
    assert found.tables[SEEN_IN] == page(written.page).tables[SEEN_IN]


@pytest.mark.parametrize('flags, text', [
    ([], 'give either --workdir'), (['--workdir=a', '--study=b'], 'give either --workdir'),
    (['--workdir={tmp}'], 'holds no training run'), (['--study={tmp}'], 'holds no study.json'),
    (['--workdir={run}', '--output={tmp}/absent/page.html'], 'absent/page.html cannot be written: there is no folder'),
    (['--workdir={run}', '--output={tmp}'], 'is a folder: name a file'),
    (['--workdir={run}', '--data_dir={tmp}/absent'], 'absent does not exist'),
])
def test_what_cannot_be_shown_is_refused(written, tmp_path, flags, text):
    done = call(report.main, *(flag.format(tmp=tmp_path, run=written.folder.path) for flag in flags))
    assert done.returncode == 1 and text in done.stderr and not list(tmp_path.iterdir())
