"""`ssd4rec study` by its flags: what it refuses, what it leaves, and the same command again."""
import dataclasses
import json

import optuna
import pytest

from ssd4rec_jax.commands import study
from ssd4rec_jax.config.run import flat, from_dict
from ssd4rec_jax.errors import ConfigError, TrainingError
from ssd4rec_jax.presets import default_config, preset_config
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.tune.search import Found
from ssd4rec_jax.tune.space import as_toml
from tests.commands.in_process import call
from tests.tiny import tiny_dataset

FILE = '[mine]\n' + ''.join(
    f'[[mine.rows]]\n{row}\n' for row in ('counted = "popularity"', 'counted = "transition"', 'name = "ours"')
)


@pytest.fixture
def given(tmp_path, monkeypatch):
    (tmp_path / 'studies.toml').write_text(FILE)
    monkeypatch.setattr(study, 'prepared_dataset', lambda config: (tiny_dataset(), tmp_path / 'log'))
    return lambda *arguments: call(
        study.main, f'--studies={tmp_path}/studies.toml', '--dataset=interactions', f'--output={tmp_path}/out',
        *arguments,
    )


def test_what_it_refuses_leaves_nothing(given, tmp_path):
    (tmp_path / 'network.toml').write_text('[model]\nname = "sasrec"\n')
    (tmp_path / 'typo.toml').write_text('[model]\nbeat = 1\n')
    for arguments, sentence in (
        ((), 'give --study, the name of a study'),
        (('--study=mne',), "--study=mne is unknown; did you mean 'mine'? Known: mine"),
        (('--study=mine', '--rows=our'), "--rows=our is no row of the study mine; did you mean 'ours'"),
        (('--study=mine', '--set=model.hidden=3'), "there is no key 'model.hidden'"),
        (('--study=mine', '--set=model.name=other'), 'the rows of the study mine say that themselves'),
        (('--study=mine', f'--config={tmp_path}/network.toml'), 'the rows of the study mine say that themselves'),
        (('--study=mine', f'--config={tmp_path}/typo.toml'), "typo.toml: model.beat=1: there is no key"),
        (('--study=mine', '--tune=2', '--tuned=there'), 'give --tune, which searches, or --tuned, what a search found'),
        (('--study=mine', '--tune=2', '--rows=transition'), '--tune: no network to search for in transition'),
        (('--study=mine', f'--output={tmp_path}/typo.toml'), 'typo.toml is a file, or lies in one: name a folder'),
    ):
        done = given(*arguments)
        assert done.returncode == 1 and sentence in done.stderr, done.stderr
    assert not (tmp_path / 'out').exists()


def test_rows_by_name_then_no_time_for_the_others(given, tmp_path):
    done = given('--study=mine', '--rows=transition,popularity', '--seeds=2', '--set=model.hidden_size=8')
    assert done.returncode == 0 and '2 of 4 cells are finished' in done.stdout
    folder = StudyFolder(tmp_path / 'out')
    summary = json.loads(folder.summary.read_text())
    assert [row['name'] for row in summary['rows']] == ['popularity', 'transition', 'ours']
    assert summary['rows'][2]['test'] is None and [cell['seed'] for cell in summary['rows'][2]['cells']] == [2024, 2025]
    assert (folder.path / 'tables.md').read_text().count('| ours |  |') == 3
    assert (folder.path / 'tables.tex').exists() and (folder.figures / 'history_length.svg').exists()
    again = given('--study=mine', '--seeds=2', '--minutes=0', '--set=model.hidden_size=8')
    assert again.returncode == 0 and 'the minutes are over: no other cell begins' in again.stdout
    assert '2 of 4 cells are finished' in again.stdout


def test_tables_that_are_not_of_a_study_are_left_alone(given, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/tables.md').write_text('mine')
    done = given('--study=mine', '--minutes=0')
    assert done.returncode == 1 and 'out/tables.md is not of a study: name another --output' in done.stderr
    assert [(path.name, path.read_text()) for path in (tmp_path / 'out').iterdir()] == [('tables.md', 'mine')]
    done = given('--study=mine', '--minutes=0', f'--output={tmp_path}/out/tables.md')
    assert done.returncode == 1 and 'out/tables.md is a file, or lies in one: name a folder' in done.stderr
    assert given('--study=mine', '--minutes=0', f'--output={tmp_path}/other').returncode == 0
    assert (tmp_path / 'other/tables.md').exists()


def test_a_log_for_which_nothing_was_measured_takes_the_settings_that_fit_it(given, tmp_path, monkeypatch):
    rows = 'network = "gru4rec"\npreset = "best"', 'name = "ours"\npreset = "best"'
    (tmp_path / 'studies.toml').write_text('[mine]\n' + ''.join(f'[[mine.rows]]\n{row}\n' for row in rows))
    asked = []
    monkeypatch.setattr(study, 'run_cells', lambda cells, *more, **options: asked.extend(cells))
    assert given('--study=mine', '--seeds=1').returncode == 0
    fitting, _ = preset_config('interactions', 'auto', lambda published: tiny_dataset(), lambda: 'cpu')
    peer, ours = (cell.config for cell in asked)
    assert ours == fitting and peer.model.name == 'gru4rec'
    assert (peer.train.learning_rate, peer.train.schedule) == (fitting.train.learning_rate, fitting.train.schedule)
    assert fitting.train.schedule != default_config('interactions').train.schedule


def test_a_folder_of_other_settings_another_study_or_another_log_is_refused(given, tmp_path, monkeypatch):
    assert given('--study=mine', '--rows=transition', '--set=train.patience=2').returncode == 0
    kept = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    more = (tmp_path / 'studies.toml').read_text() + FILE.replace('mine', 'yours')
    (tmp_path / 'studies.toml').write_text(more)
    monkeypatch.setattr(study, 'run_cells', lambda *arguments, **more: pytest.fail('a cell would run'))
    done = given('--study=mine', '--rows=ours', '--set=train.patience=3')
    assert done.returncode == 1 and 'train.patience: 2 there, 3 here' in done.stderr
    done = given('--study=yours', '--set=train.patience=2')
    assert done.returncode == 1 and 'out holds the study mine: name another --output' in done.stderr
    other = dataclasses.replace(tiny_dataset(), fingerprint='of another log')
    monkeypatch.setattr(study, 'prepared_dataset', lambda config: (other, tmp_path / 'log'))
    done = given('--study=mine', '--set=train.patience=2')
    assert done.returncode == 1 and 'out holds cells of another log: name another --output' in done.stderr
    monkeypatch.setattr(study, 'run_cells', lambda *arguments, **more: [])
    for asked in ('--study=mine', '--study=yours'):
        assert given(asked, '--set=train.patience=3', f'--output={tmp_path}/{asked}').returncode == 0
    assert kept == {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}


def test_a_file_of_settings_leaves_networks_alone_that_do_not_know_them(given, tmp_path, monkeypatch):
    (tmp_path / 'studies.toml').write_text(FILE + '[[mine.rows]]\nnetwork = "gru4rec"\n')
    (tmp_path / 'settings.toml').write_text('[model]\nbeta = 0.7\nhidden_size = 8\n')
    ran = {}
    monkeypatch.setattr(
        study, 'run_cells', lambda cells, *arguments, **more: ran.update((cell.row.name, cell) for cell in cells)
    )
    assert given('--study=mine', f'--config={tmp_path}/settings.toml').returncode == 0
    ours, peer = (ran[name].config.model for name in ('ours', 'gru4rec'))
    assert (ours.name, ours.beta, ours.hidden_size) == ('ssd4rec', 0.7, 8)
    assert (peer.name, peer.hidden_size) == ('gru4rec', 8)


def test_what_an_error_says_is_printed_as_it_is(given, monkeypatch):
    def failing(*arguments):
        raise ConfigError('write [model] above, not [/a]')

    monkeypatch.setattr('ssd4rec_jax.study.run.run_cell', failing)
    done = given('--study=mine', '--rows=transition')
    assert done.returncode == 1 and '[1/1] transition: failed: write [model] above, not [/a]' in done.stdout


def test_a_summary_that_is_gone_is_written_anew(given, tmp_path):
    assert given('--study=mine', '--rows=transition').returncode == 0
    summary = json.loads((tmp_path / 'out/study.json').read_text())
    (tmp_path / 'out/study.json').unlink()
    assert given('--study=mine', '--minutes=0').returncode == 0
    again = json.loads((tmp_path / 'out/study.json').read_text())
    assert summary['rows'] == again['rows'] and again['finished'] == 1


def test_a_search_that_finds_nothing_does_not_end_the_others(given, tmp_path, monkeypatch):
    (tmp_path / 'studies.toml').write_text(FILE + '[[mine.rows]]\nname = "later"\nset = {"model.beta" = 0.5}\n')

    def searched(base, space, folder, *arguments, **more):
        folder.mkdir(parents=True)
        if folder.name == 'ours':
            raise TrainingError('none of 7 trials has a validation')
        return Found(0.5, base, 7, {})

    monkeypatch.setattr('ssd4rec_jax.study.tuning.search', searched)
    done = given('--study=mine', '--tune=7')
    assert done.returncode == 1 and 'ours: failed: none of 7 trials has a validation' in done.stdout
    assert [path.parent.name for path in (tmp_path / 'out/tuned').rglob('tuned.json')] == ['later']


def test_what_a_flag_sets_is_searched_by_another_space_or_not_at_all(given, tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr(
        'ssd4rec_jax.study.tuning.search',
        lambda base, space, *more, **options: searched.append((base.model.num_layers, sorted(space))),
    )
    done = given('--study=mine', '--tune=2', '--set=model.num_layers=1')
    assert done.returncode == 1 and searched == []
    assert '--set=model.num_layers=1: the search tries that setting: leave it out here or of --space' in done.stderr
    (tmp_path / 'space.toml').write_text('[train]\nlearning_rate = [0.001, 0.002]\n')
    done = given('--study=mine', '--tune=2', '--set=model.num_layers=1', f'--space={tmp_path}/space.toml')
    assert done.returncode == 0, done.stderr
    assert given('--study=mine', '--tune=2').returncode == 0
    assert searched == [
        (1, ['train.learning_rate']), (2, ['model.dropout_prob', 'model.num_layers', 'train.learning_rate']),
    ]


def test_a_search_that_is_cut_short_leaves_nothing_to_take(given, tmp_path, monkeypatch):
    found = iter((3, 7))
    monkeypatch.setattr(
        'ssd4rec_jax.study.tuning.search', lambda base, *more, **options: Found(0.5, base, next(found), {})
    )
    (tmp_path / 'out/tuned/ours').mkdir(parents=True)
    done = given('--study=mine', '--tune=7')
    assert 'ours has got 3 of its 7 trials: the same command goes on' in done.stdout
    assert not (tmp_path / 'out/tuned/ours/tuned.json').exists()
    assert given('--study=mine', '--tune=7').returncode == 0
    assert json.loads((tmp_path / 'out/tuned/ours/tuned.json').read_text())['trials'] == 7


def test_paths_of_this_machine_are_not_shown():
    assert study._without_paths([]) == []
    words = ['--study=beta', '--data_dir=/home/log', '--config', '/home/my.toml', '--studies=/home/x', '--seeds=2']
    assert study._without_paths(words) == [
        '--study=beta', '--data_dir=DIR', '--config', 'DIR', '--studies=DIR', '--seeds=2',
    ]


def test_settings_are_searched_and_then_taken(given, tmp_path, monkeypatch):
    asked = []

    def searched(base, space, folder, prepare, *, trials, told, **more):
        asked.append((folder.name, trials, sorted(space)))
        best = dataclasses.replace(base, train=dataclasses.replace(base.train, learning_rate=0.004))
        folder.mkdir(parents=True)
        (folder / 'best.toml').write_text(as_toml(best))
        told('trial 0')
        return Found(0.5, best, trials, {})

    monkeypatch.setattr('ssd4rec_jax.study.tuning.search', searched)
    done = given('--study=mine', '--tuned=nowhere')
    assert done.returncode == 1 and 'search for the settings of ours with --tune' in done.stderr
    done = given('--study=mine', '--tune=7', '--set=model.hidden_size=8')
    assert done.returncode == 0 and 'ours: trial 0' in done.stdout
    assert asked == [('ours', 7, ['model.dropout_prob', 'model.num_layers', 'train.learning_rate'])]
    kept = json.loads((tmp_path / 'out/tuned/ours/tuned.json').read_text())
    assert (kept['trials'], kept['config']['train.learning_rate']) == (7, 0.004) and 'dropout_prob' in kept['space']
    ran = []
    monkeypatch.setattr(study, 'run_cells', lambda cells, *arguments, **more: ran.extend(cells))
    arguments = f'--tuned={tmp_path}/out/tuned', f'--output={tmp_path}/tuned', '--set=train.patience=3', '--seeds=1'
    assert given('--study=mine', *arguments).returncode == 0
    own = ran[-1].config
    # The size is not among what was tried.
    assert (own.train.learning_rate, own.train.patience) == (0.004, 3) and own.model.hidden_size != 8
    (tmp_path / 'out/tuned/ours/tuned.json').write_text('{"space": "[model]"')
    done = given('--study=mine', *arguments)
    assert done.returncode == 1 and 'tuned.json cannot be read' in done.stderr
    assert given('--study=mine', '--rows=popularity', *arguments).returncode == 1, 'what is damaged is said'
    (tmp_path / 'out/tuned/ours/tuned.json').unlink()
    assert given('--study=mine', '--rows=popularity', *arguments).returncode == 0


def test_no_trial_begins_once_the_minutes_of_the_whole_search_are_over(given, tmp_path, monkeypatch):
    (tmp_path / 'studies.toml').write_text(FILE + '[[mine.rows]]\nname = "later"\nset = {"model.beta" = 0.5}\n')
    now, left = [0.0], []
    monkeypatch.setattr('ssd4rec_jax.study.tuning.time.monotonic', lambda: now[0])

    def searched(*arguments, minutes, **more):
        left.append(minutes)
        now[0] += 90.0

    monkeypatch.setattr('ssd4rec_jax.study.tuning.search', searched)
    done = given('--study=mine', '--tune=3', '--minutes=2')
    assert left == [2.0, 0.5] and done.returncode == 0
    done = given('--study=mine', '--tune=3', '--minutes=1')
    assert left[2:] == [1.0] and 'the minutes are over: later and those after it have not got their 3' in done.stdout


@pytest.mark.slow
def test_a_search_with_optuna_and_a_study_with_what_it_found(given, tmp_path):
    (tmp_path / 'studies.toml').write_text(FILE + '[[mine.rows]]\nnetwork = "gru4rec"\n')
    own = (
        '--study=mine', '--rows=popularity,ours,gru4rec', '--seeds=1', '--set=model.hidden_size=8',
        '--set=train.max_epochs=1', '--set=train.targets_per_step=64',
    )
    assert given('--tune=2', *own).returncode == 0
    folder = StudyFolder(tmp_path / 'tuned')
    done = given(f'--tuned={tmp_path}/out/tuned', f'--output={folder.path}', *own)
    assert done.returncode == 0 and '3 of 4 cells are finished' in done.stdout, done
    for row in ('ours', 'gru4rec'):
        kept = json.loads((tmp_path / f'out/tuned/{row}/tuned.json').read_text())
        search = optuna.load_study(study_name='ssd4rec', storage=f'sqlite:///{tmp_path}/out/tuned/{row}/study.db')
        assert kept['trials'] == len(search.trials) == 2
        assert kept['validation_ndcg10'] == max(trial.value for trial in search.trials)
        assert search.best_params.items() <= kept['config'].items()
        record = folder.read(f'{row}-2024')
        assert flat(from_dict(record['config'])) == kept['config']
        assert record['valid']['NDCG@10'] == pytest.approx(kept['validation_ndcg10'], abs=1e-6)
