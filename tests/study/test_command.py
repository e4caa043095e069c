"""`ssd4rec study` by its flags: what it refuses, what it leaves, and the same command again."""
import dataclasses
import json

import optuna
import pytest

from ssd4rec_jax.commands import study
from ssd4rec_jax.config.run import flat, from_dict
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
    for arguments, sentence in (
        ((), 'give --study, the name of a study'),
        (('--study=mne',), "--study=mne is unknown; did you mean 'mine'? Known: mine"),
        (('--study=mine', '--rows=our'), "--rows=our is no row of the study mine; did you mean 'ours'"),
        (('--study=mine', '--set=model.hidden=3'), "there is no key 'model.hidden'"),
        (('--study=mine', '--set=model.name=other'), 'the rows of the study mine say that themselves'),
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
    assert (own.train.learning_rate, own.train.patience, own.model.hidden_size) == (0.004, 3, 8)


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
