"""`ssd4rec study` by its flags: what it refuses, what it leaves, and the same command again."""
import json

import pytest

from ssd4rec_jax.commands import study
from ssd4rec_jax.study.folder import StudyFolder
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
