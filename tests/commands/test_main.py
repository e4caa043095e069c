"""The console script, what --help shows, and how a configuration is put together."""
import json
import sys
from pathlib import Path

import pytest
from absl import flags

from ssd4rec_jax.commands import config_flags, entered_run, help, main, settings, train
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.data.dataset import save_dataset
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import write_config
from tests.commands.in_process import call
from tests.tiny import tiny_dataset


def script(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the console script where it does not start a command."""
    monkeypatch.setattr(sys, 'argv', ['/bin/ssd4rec', *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code, *capsys.readouterr()


def test_the_overview_names_every_command_in_80_columns(monkeypatch, capsys):
    code, out, _ = script(monkeypatch, capsys, '--help')
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines() if line.startswith('  ')] == list(main.COMMANDS)
    assert script(monkeypatch, capsys)[0] == 2


def test_a_command_that_there_is_not_is_answered_with_the_nearest(monkeypatch, capsys):
    code, _, err = script(monkeypatch, capsys, 'recomend')
    assert code == 2 and "did you mean 'recommend'?" in err
    assert 'did you mean' not in script(monkeypatch, capsys, 'qqq')[2]


def test_help_shows_own_flags_by_topic_in_80_columns(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    shown = help.help_text(train)
    assert max(map(len, shown.splitlines())) <= 80
    for text in ('--[no]restart', '--set=... (may be repeated)', '--config=', 'Settings:', 'The log:', '--dataset='):
        assert text in shown
    assert '--bad_rows=refuse|skip' in shown and 'Default: synthetic.' in shown
    for foreign in ('grain', 'orbax', 'verbosity', 'cprofile', 'repeat this option'):
        assert foreign not in shown


def test_an_unknown_flag_is_answered_with_one_of_ours():
    assert help.unknown_flag('worksdir') == "there is no flag --worksdir; did you mean 'workdir'?"
    assert help.unknown_flag('zzzz') == 'there is no flag --zzzz.'


def test_settings_lists_every_key_with_the_value_of_the_data_set(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    done = call(settings.main, '--dataset=amazon-beauty', '--set=train.seed=7')
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert 'model.dropout_prob = 0.3  (float, default 0.2)' in done.stdout
    assert 'train.seed = 7  (int, default 2024)' in done.stdout
    assert "data.split_test_time = ''  (str)" in done.stdout
    assert "    the probability (the paper's rho)" in done.stdout
    published = call(settings.main, '--dataset=amazon-beauty', '--preset=published').stdout
    assert 'model.dropout_prob = 0.4  (float, default 0.2)' in published
    own = call(settings.main, '--dataset=interactions').stdout
    assert 'fits to its' in own and 'model.dropout_prob = 0.2  (float)' in own


def with_flags(function, *arguments):
    """What a function returns under some flags."""
    found = []

    def main():
        found.append(function())
        return 0

    done = call(main, *arguments)
    return found[0] if found else done.stderr


def configured(*arguments):
    return with_flags(lambda: config_flags.overridden(default_config('ml-1m')), *arguments)


def test_a_toml_file_stands_below_set(tmp_path):
    (tmp_path / 'c.toml').write_text(
        '[model]\nnum_layers = 1\nnorm_embedding = false\n'
        '[train]\nlearning_rate = 1e-4\noptimizer = "adamw"\nseed = 3\n'
    )
    assert configured(f'--config={tmp_path}/c.toml', '--set=train.seed=5') == apply_overrides(default_config('ml-1m'), [
        'model.num_layers=1', 'model.norm_embedding=false', 'train.learning_rate=1e-4', 'train.optimizer=adamw',
        'train.seed=5',
    ])


@pytest.mark.parametrize('text, message', [
    ('[model]\nlayers = 1', "c.toml: model.layers=1: there is no key 'model.layers'; it is called 'model.num_layers'"),
    ('[train]\nseed = 1.5', "c.toml: train.seed=1.5: train.seed takes a whole number"),
    ('seed = 1', 'c.toml: seed stands outside a section'),
    ('[data]\nsplit = ["time"]', 'data.split is ['),
    ('[model', 'c.toml: is no TOML file'),
])
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / 'c.toml').write_text(text)
    assert message in configured(f'--config={tmp_path}/c.toml')
    assert 'cannot be read' in configured('--config=absent.toml')


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with the config of a run that stopped early after epoch 7, the last 11 of which were worse."""
    save_dataset(tiny_dataset(), tmp_path / 'prepared')
    config = apply_overrides(default_config('interactions'), ['model.num_layers=1', 'train.max_epochs=9'])
    (tmp_path / 'run').mkdir()
    write_config(RunFolder(tmp_path / 'run'), config, tmp_path / 'prepared')
    monkeypatch.setattr(Checkpoints, 'newest_meta', lambda self: {'epoch': 7, 'stopping': {'worse': 11}})
    return tmp_path / 'run', config


def entered(path: Path, *arguments: str, restart: bool = False):
    return with_flags(lambda: entered_run.entered_run(path, restart=restart), f'--workdir={path}', *arguments)


def test_a_workdir_alone_goes_on_with_its_run(run):
    path, config = run
    found = entered(path)
    assert found.config == config and not found.more_epochs
    dataset, prepared = found.dataset()
    assert prepared == path.parent / 'prepared' and dataset.fingerprint == tiny_dataset().fingerprint
    assert entered(path, '--set=train.seed=1').config.train.seed == 1
    published = entered(path, '--dataset=interactions', '--preset=published')
    assert published.config == default_config('interactions')
    # auto fits the settings to the run's own log.
    fitted = entered(path, '--dataset=interactions').config
    assert (fitted.model.hidden_size, fitted.train.loss, fitted.train.table_optimizer) == (64, 'full', 'adagrad')
    assert entered(path, restart=True).config == default_config('synthetic')
    assert entered(path, '--data_dir=log.csv').prepared is None
    assert entered(path, '--set=data.min_interactions=2').prepared is None


def test_more_epochs_follow_those_that_were_trained(run):
    path, config = run
    for arguments in ([], ['--dataset=interactions']):
        found = entered(path, '--set=train.max_epochs=+10', *arguments)
        assert found.more_epochs and (found.config.train.max_epochs, found.config.train.patience) == (17, 21)
        assert found.config.model == config.model
    assert 'write how many epochs' in entered(path, '--set=train.max_epochs=+x')
    assert 'there is none in' in entered(path.parent / 'absent', '--set=train.max_epochs=+1')
    assert 'there is none in' in entered(path, '--set=train.max_epochs=+1', restart=True)


def test_a_failed_start_leaves_no_folder_but_a_run_stays(tmp_path):
    def failing(path):
        with pytest.raises(ValueError), train.no_folder_left(path):
            RunFolder(path).lock()
            raise ValueError

    failing(tmp_path / 'a/b/run')
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'here').mkdir()
    failing(tmp_path / 'here')
    assert (tmp_path / 'here').is_dir()
    with pytest.raises(ValueError), train.no_folder_left(tmp_path / 'begun'):
        RunFolder(tmp_path / 'begun').lock()
        (tmp_path / 'begun/config.json').write_text(json.dumps({}))
        raise ValueError
    assert (tmp_path / 'begun/config.json').exists()


def test_the_workdir_is_runs_of_the_data_set_by_default():
    assert with_flags(entered_run.workdir_of_run, '--dataset=ml-1m') == Path('runs/ml-1m').resolve()
    assert not flags.FLAGS['dataset'].present
