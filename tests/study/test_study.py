"""A small grid in this process: cells that go on, what is told of them, figures that follow from the ranks alone."""
import dataclasses
import json
import math

import numpy as np
import pytest

from ssd4rec_jax.config.run import RunConfig, from_dict
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import seal, write_json
from ssd4rec_jax.rank.baselines import transition_ranks
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.study.cell import run_cell
from ssd4rec_jax.study.figures import FORMATS, draw
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import cells, chosen, read_study
from ssd4rec_jax.study.run import run_cells
from ssd4rec_jax.study.summary import summarize
from ssd4rec_jax.study.tables import latex, markdown
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset

pytestmark = pytest.mark.slow  # Whole trainings take minutes.

BASE = RunConfig('interactions', MODEL, DATA, dataclasses.replace(TRAIN, max_epochs=2))
GRID = '''
[small]
about = "Do two settings differ?"
[[small.rows]]
counted = "transition"
[[small.rows]]
name = "forward"
set = {"model.beta" = 0.0}
[[small.rows]]
name = "masked_most"
set = {"data.mask_ratio" = 0.8, "data.packing" = "padded", "data.max_history" = 8}
'''
DATASET = tiny_dataset(users=40, items=25)


def grid(folder, seeds=2):
    path = folder / 'studies.toml'
    path.write_text(GRID)
    study = read_study('small', path)
    return study, cells(study.rows, seeds, lambda preset: BASE, lambda config: config)


def run(folder, grid, **more):
    """What run_cells tells."""
    told: list[str] = []
    arguments = {
        'minutes': None, 'stop_requested': lambda: False, 'told': told.append, 'finished': lambda: None,
        'shown': lambda name: Reporter(),
    }
    run_cells(grid, folder, lambda config: (DATASET, folder.path / 'log'), **{**arguments, **more})
    return told


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A study that was stopped within a cell, then in time, and then went on to its end: what each call told."""
    place = tmp_path_factory.mktemp('study')
    study, own = grid(place)
    folder = StudyFolder(place / 'out')
    calls, left = [], iter([False] * 3 + [True] * 99)
    calls.append(run(folder, own, stop_requested=lambda: next(left)))
    early = summarize(study, own, folder, 'the command')
    calls.append(run(folder, own, minutes=0))
    with folder.claimed('forward-2024') as mine:
        assert mine
        calls.append(run(folder, own[:2]))
    calls.append(run(folder, own))
    calls.append(run(folder, own))
    return folder, study, own, calls, early


def test_cells_go_on_where_they_stopped_and_none_runs_twice(finished):
    folder, _, own, calls, _ = finished
    assert [cell.name for cell in own] == [
        'transition', 'forward-2024', 'masked_most-2024', 'forward-2025', 'masked_most-2025',
    ]
    stopped, no_time, claimed, rest, again = calls
    assert stopped[0].startswith('[1/5] transition: test NDCG@10 in ')
    assert stopped[1:] == ['[2/5] forward-2024: stopped and saved']
    assert no_time == ['the minutes are over: no other cell begins']
    assert claimed == ['[2/2] forward-2024: another process runs it']
    assert [line.partition(':')[0] for line in rest] == [f'[{n}/5] {own[n - 1].name}' for n in (2, 3, 4, 5)]
    assert ', 2 epochs, ' in rest[0] and again == []
    assert not list((folder.path / 'cells').glob('.*')), 'finished cells leave no lock'


def test_cells_that_have_not_run_are_empty(finished):
    early = finished[-1]
    assert (early['cells'], early['finished'], early['dataset']) == (5, 1, 'tiny')
    assert early['against'] == {'in': 'transition', 'out': 'transition'}
    row = early['rows'][1]
    assert row['test'] is row['cost'] is row['by'] is row['difference']['in'] is None and row['curves'] == []
    assert row['cells'][1] == {'seed': 2025, 'file': 'cells/forward-2025.json', 'finished': False}
    assert row['valid'] is early['rows'][0]['valid'] is None
    assert '| forward |  |  |  |  |  |  |  |  |  |  |  |\n' in markdown(early)


def ranks_of(folder, cell):
    """The arrays beside the record of a finished cell."""
    with np.load(folder.path / 'cells' / f'{cell}.npz', allow_pickle=False) as stored:
        return dict(stored)


def value(metric, rank):
    """A metric of one rank, from its definition."""
    name, k = metric.split('@')
    if not 1 <= rank <= int(k):
        return 0.0
    return {'HR': 1.0, 'NDCG': 1 / math.log2(1 + rank), 'MRR': 1 / rank}[name]


def test_figures_follow_from_the_ranks(finished):
    folder, study, own, _, _ = finished
    summary = json.loads(json.dumps(summarize(study, own, folder, 'the command')))
    ranks = {cell.name: ranks_of(folder, cell.name) for cell in own}
    np.testing.assert_array_equal(ranks['transition']['in'], transition_ranks(DATASET, 'test'))
    means = {}
    for row in summary['rows']:
        names = [cell['file'].removeprefix('cells/').removesuffix('.json') for cell in row['cells']]
        for seen in ('in', 'out'):
            for metric in summary['metrics']:
                of_seeds = [np.mean([value(metric, rank) for rank in ranks[name][seen]]) for name in names]
                told = row['test'][seen][metric]
                assert told['mean'] == pytest.approx(np.mean(of_seeds), abs=1e-12) and told['n'] == len(names)
                sd = math.sqrt(sum((v - np.mean(of_seeds)) ** 2 for v in of_seeds)) if len(names) == 2 else None
                assert told['sd'] == (None if sd is None else pytest.approx(sd, abs=1e-12))
                means[row['name'], seen, metric] = told['mean']
    for seen in ('in', 'out'):
        best = max(('transition', 'forward', 'masked_most'), key=lambda name: means[name, seen, 'HR@20'])
        assert means[summary['best'][seen]['HR@20'], seen, 'HR@20'] == means[best, seen, 'HR@20']
        for name in ('forward', 'masked_most'):
            row = next(row for row in summary['rows'] if row['name'] == name)
            apart = row['difference'][seen]['NDCG@10']
            wanted = means[name, seen, 'NDCG@10'] - means['transition', seen, 'NDCG@10']
            assert apart['mean'] == pytest.approx(wanted, abs=1e-12) and apart['seeds'] == 2
            assert apart['low'] <= apart['mean'] <= apart['high'] and 0 <= apart['p'] <= 1
        assert summary['rows'][0]['difference'][seen] is None
    own_cell = ranks['forward-2025']
    for name, quarters in summary['rows'][0]['by'].items():
        of_users = ranks['transition'][name]
        assert sum(quarter['users'] for quarter in quarters) == len(own_cell['users']) == 40
        for quarter in quarters:
            inside = (of_users >= quarter['from']) & (of_users <= quarter['to'])
            wanted = np.mean([value('NDCG@10', rank) for rank in ranks['transition']['out'][inside]])
            assert quarter['out'] == pytest.approx(wanted, abs=1e-12) and quarter['users'] == inside.sum()


def test_a_record_says_how_it_was_made(finished):
    folder, _, own, _, _ = finished
    record = folder.read('masked_most-2025')
    assert (record['seed'], record['row'], record['network'], record['targets']) == (2025, 'masked_most', 'ssd4rec', 40)
    assert from_dict(record['config']) == own[-1].config
    assert '--set=train.seed=2025' in record['command'] and '--set=data.mask_ratio=0.8' in record['command']
    seconds = [point['train_seconds'] for point in record['curve']]
    assert [point['epoch'] for point in record['curve']] == [1, 2] and 0 < seconds[0] < seconds[1]
    assert record['train_seconds'] == seconds[1] and record['step_memory_bytes'] > 0
    result = json.loads((folder.run('masked_most-2025') / 'result.json').read_text())
    assert record['test']['in'] == pytest.approx(result['test'], abs=1e-7)
    assert record['packing_fill'] < 0.5 < folder.read('forward-2025')['packing_fill'], 'one history a row of 16'
    lengths = [length for n in DATASET.lengths for length in range(1, n - 2)]  # of the training prefixes
    assert record['interactions_lost'] == pytest.approx(1 - sum(min(n, 8) for n in lengths) / sum(lengths))
    assert folder.read('forward-2025')['interactions_lost'] == 0
    assert record['seen_targets'] == np.mean(ranks_of(folder, 'masked_most-2025')['out'] == 0) > 0


def test_the_tables_and_figures(finished):
    folder, study, own, _, _ = finished
    summary = summarize(study, own, folder, 'the command')
    text = markdown(summary).splitlines()
    best = {row['name']: row['test']['out']['MRR@10']['mean'] for row in summary['rows']}
    at = next(number for number, line in enumerate(text) if line.startswith('Ranking, seen items left out.'))
    head, rows = text[at + 2].split(' | '), [line.split(' | ') for line in text[at + 4:at + 7]]
    column = head.index('MRR@10')
    (at,) = (number for number, line in enumerate(text) if line.startswith('| row | seeds | validation NDCG@10 |'))
    chose = [max(point['NDCG@10'] for point in folder.read(f'forward-{seed}')['curve']) for seed in (2024, 2025)]
    assert text[at + 2].split(' | ')[2] == '–' and text[at + 3].split(' | ')[2].startswith(f'{np.mean(chose):.4f} ± ')
    assert [row[0].removeprefix('| ') for row in rows] == ['transition', 'forward', 'masked_most']
    assert [row[column].startswith('**') for row in rows] == [v == max(best.values()) for v in best.values()]
    assert rows[1][column].strip('*').startswith(f'{best["forward"]:.4f} ± ')
    written = latex(summary)
    assert written.count('\\toprule') == 3 and 'masked\\_most & 2 & ' in written and 'NDCG@10' in written
    assert '±' not in written and '$\\pm$' in written
    files = draw(summary, folder.figures)
    names = {path.name for path in files}
    drawn = 'accuracy', 'training_seconds', 'history_length', 'item_popularity'
    assert names == {f'{n}.{k}' for n in drawn for k in FORMATS}
    assert 'masked_most' in (folder.figures / 'history_length.svg').read_text()


def test_a_varied_setting_has_figures_of_its_own(tmp_path, finished):
    summary = summarize(*finished[1:3], finished[0], 'the command')
    rows = [{**row, 'x': x, 'series': 'ours'} for row, x in zip(summary['rows'][1:], (0, 50), strict=True)]
    files = draw({**summary, 'x': 'data.max_history', 'values': [50, 0], 'rows': rows}, tmp_path / 'figures')
    assert {path.stem for path in files} == {'metrics', 'cost'}
    drawn = (tmp_path / 'figures' / 'metrics.svg').read_text()
    panels = {f'test {metric}@10, seen items {seen}' for metric in ('HR', 'NDCG', 'MRR') for seen in ('in', 'out')}
    assert all(panel in drawn for panel in panels)
    assert all(path.stat().st_size > 1000 for path in files)


def test_another_config_damage_and_unknown_rows_are_named(finished, tmp_path):
    folder, study, own, _, _ = finished
    other = dataclasses.replace(own[1].config, train=dataclasses.replace(own[1].config.train, max_epochs=5))
    with pytest.raises(ConfigError, match='train.max_epochs: 2 there, 5 here'):
        summarize(study, [own[1]._replace(config=other)], folder, 'the command')
    with pytest.raises(ConfigError, match="masked_mst is no row of the study small; did you mean 'masked_most'"):
        chosen(study, ['masked_mst'])
    copy = StudyFolder(tmp_path)
    copy.cell('forward-2024').parent.mkdir()
    copy.cell('forward-2024').write_text(folder.cell('forward-2024').read_text().replace('"epochs": 2', '"epochs": 3'))
    with pytest.raises(ConfigError, match='is damaged .*remove it, and the cell runs again'):
        copy.read('forward-2024')
    for name in ('forward-2024', 'transition'):
        copy.cell(name).write_text(folder.cell(name).read_text())
    kept = summarize(study, own, copy, 'the command')
    assert kept['finished'] == 2 and kept['rows'][1]['test']['in']['HR@10']['n'] == 1
    assert kept['rows'][1]['difference']['in']['NDCG@10']['seeds'] == 1, 'the records are enough, as they are committed'
    for name in ('forward-2024', 'transition'):
        record = copy.read(name)
        write_json(copy.cell(name), seal({key: record[key] for key in record if key != 'ranks'}))
    older = summarize(study, own, StudyFolder(tmp_path), 'the command')
    assert older['rows'][1]['difference']['in'] is None, 'records of yesterday have no ranks'
    copy.cell('forward-2024').unlink()
    assert copy.read('forward-2024') is None


def test_a_cell_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    study, own = grid(tmp_path, seeds=1)

    def failing(cell, *arguments):
        if cell.row.name == 'forward':
            raise ConfigError('it diverges')
        return run_cell(cell, *arguments) if cell.row.counted else None

    monkeypatch.setattr('ssd4rec_jax.study.run.run_cell', failing)
    told = run(StudyFolder(tmp_path / 'out'), own)
    assert told[1:] == ['[2/3] forward-2024: failed: it diverges', '[3/3] masked_most-2024: stopped and saved']
