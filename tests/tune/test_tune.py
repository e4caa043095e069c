"""The search for settings: its space, and a search that is interrupted, goes on, and leaves the best settings."""
import dataclasses
import json
import sys
import tomllib

import pytest

from ssd4rec_jax.config.run import RunConfig, apply_overrides, flat
from ssd4rec_jax.errors import ConfigError, TrainingError, UserError
from ssd4rec_jax.train.early_stopping import STOPPING_METRIC
from ssd4rec_jax.tune.search import search
from ssd4rec_jax.tune.space import DEFAULT, Numbers, as_toml, override, read_space
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset

CONFIG = RunConfig('interactions', MODEL, DATA, dataclasses.replace(TRAIN, max_epochs=1))


def space_of(tmp_path, text):
    path = tmp_path / 'space.toml'
    path.write_text(text)
    return read_space(path, CONFIG)


def test_a_space(tmp_path):
    space = space_of(tmp_path, (
        '[model]\nnorm_embedding = [true, false]\nnum_layers = {low = 1, high = 3}\n'
        '[train]\nlearning_rate = {low = 1e-4, high = 1e-2, log = true}\n'
    ))
    assert space == {
        'model.norm_embedding': [True, False], 'model.num_layers': Numbers(1, 3),
        'train.learning_rate': Numbers(1e-4, 1e-2, True),
    }
    assert override('model.norm_embedding', True) == 'model.norm_embedding=true'
    assert read_space(DEFAULT, RunConfig('ml-100k'))


@pytest.mark.parametrize('text, message', [
    ('[model]\nlayers = [1, 2]\n', "it is called 'model.num_layers' here"),
    ('[model]\nhidden_size = ["wide"]\n', 'a whole number'),
    ('[model]\ndropout_prob = {low = 0.5, high = 0.1}\n', 'low must be below high'),
    ('[model]\ndropout_prob = 0.5\n', 'write a list of values'),
    ('[model]\ndropout_prob = {low = 0.0, high = 0.5, log = true}\n', 'above 0'),
    ('[model]\ndropout_prob = {low = 0.5, high = 1.5}\n', 'must be in'),
    ('[model\n', 'no TOML file'), ('', 'names no setting'),
])
def test_spaces_that_cannot_be_searched(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        space_of(tmp_path, text)


def test_toml_holds_every_setting():
    config = apply_overrides(CONFIG, ['data.split_valid_time=2020-01-01', 'train.learning_rate=1e-05'])
    sections = tomllib.loads(as_toml(config))
    read = {f'{section}.{key}': value for section, own in sections.items() for key, value in own.items()}
    assert read == {key: value for key, value in flat(config).items() if key != 'dataset'}


@pytest.mark.slow
def test_a_search_goes_on_and_leaves_the_best(tmp_path):
    space, told, log = {'train.learning_rate': Numbers(1e-4, 1e-1, True)}, [], tiny_dataset()

    def found(trials, stop=lambda: False):
        return search(
            CONFIG, space, tmp_path / 'study', lambda config: (log, tmp_path), trials=trials, minutes=None,
            stop_requested=stop, told=told.append,
        )

    assert found(1, stop=lambda: True) is None and told == ['trial 0: stopped, and does not count']
    first = found(2)
    assert first.trials == 2 and first.importance == {}
    assert [line.partition(':')[0] for line in told] == ['trial 0', 'trial 1', 'trial 2']
    rates = [
        json.loads((tmp_path / f'study/trials/{number}/config.json').read_text())['train']['learning_rate']
        for number in (1, 2)
    ]
    assert rates[0] == CONFIG.train.learning_rate != rates[1], 'trial 0, which was stopped, had it too'
    best = found(3)
    assert best.trials == 3 and best.value >= first.value
    assert found(3).config == best.config, 'there is nothing left to do'
    stored = tomllib.loads((tmp_path / 'study' / 'best.toml').read_text())
    assert stored['train']['learning_rate'] == best.config.train.learning_rate
    assert told[-1].endswith(f'best {best.value:.4f}')
    with pytest.raises(UserError, match='another space'):
        search(
            CONFIG, {'train.learning_rate': [1e-3]}, tmp_path / 'study', lambda config: (log, tmp_path), trials=4,
            minutes=None, stop_requested=lambda: False, told=told.append,
        )


@pytest.mark.slow
def test_a_search_whose_space_leaves_its_settings_out_does_not_try_them(tmp_path):
    assert CONFIG.train.learning_rate not in (0.02, 0.03)
    found = search(
        CONFIG, {'train.learning_rate': [0.02, 0.03]}, tmp_path / 'study', lambda config: (tiny_dataset(), tmp_path),
        trials=1, minutes=None, stop_requested=lambda: False, told=[].append,
    )
    assert found.config.train.learning_rate in (0.02, 0.03)


@pytest.mark.slow
def test_two_searches_at_once_try_no_more_than_was_asked(tmp_path):
    """The second one begins and ends while the first one prepares the data of its only trial."""
    space, told, log, seconds = {'train.learning_rate': Numbers(1e-4, 1e-1, True)}, [], tiny_dataset(), []

    def found(prepare):
        return search(
            CONFIG, space, tmp_path / 'study', prepare, trials=3, minutes=None, stop_requested=lambda: False,
            told=told.append,
        )

    def prepare(config):
        if not seconds:
            seconds.append(None)
            seconds[0] = found(lambda config: (log, tmp_path))
        return log, tmp_path

    assert found(prepare).trials == 3
    assert seconds[0].trials == 2, 'those that had ended'
    assert [line.partition(':')[0] for line in told] == [
        'trial 1', 'trial 2', 'other processes run the last trials, or died less than 120 s ago', 'trial 0',
    ]


def test_a_search_in_which_no_trial_has_a_result_is_an_error(tmp_path, monkeypatch):
    """As where all settings diverge; nothing is left that could be taken for what was found."""
    def diverges(*arguments, **more):
        raise TrainingError('the loss is not finite')

    monkeypatch.setattr('ssd4rec_jax.tune.search.launch', diverges)
    told = []
    for _ in range(2):  # The same search again says so again.
        with pytest.raises(TrainingError, match='study: none of 2 trials has a validation: search with other settings'):
            search(
                CONFIG, {'train.learning_rate': Numbers(1e17, 1e18)}, tmp_path / 'study', lambda config: None,
                trials=2, minutes=None, stop_requested=lambda: False, told=told.append,
            )
    assert told == ['trial 0: the loss is not finite', 'trial 1: the loss is not finite']
    assert [path.name for path in (tmp_path / 'study').iterdir()] == ['study.db']
    monkeypatch.setattr('ssd4rec_jax.tune.search.launch', lambda *arguments, **more: {'valid': {STOPPING_METRIC: 0.5}})
    found = search(
        CONFIG, {'train.learning_rate': Numbers(1e-4, 1e-3)}, tmp_path / 'new', lambda config: None, trials=2,
        minutes=None, stop_requested=lambda: False, told=told.append,
    )
    assert (found.value, found.trials) == (0.5, 2) and (tmp_path / 'new/best.toml').exists()


def test_a_search_in_a_file_is_refused(tmp_path):
    (tmp_path / 'log.csv').touch()
    for folder in (tmp_path / 'log.csv', tmp_path / 'log.csv/study'):
        with pytest.raises(ConfigError, match='is a file, or lies in one: name a folder for the search'):
            search(
                CONFIG, {'train.learning_rate': [1e-3]}, folder, lambda config: None, trials=1, minutes=None,
                stop_requested=lambda: False, told=[].append,
            )


def test_optuna_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(UserError, match=r'ssd4rec-jax\[tune\]'):
        search(
            CONFIG, {}, tmp_path / 'study', lambda config: (tiny_dataset(), tmp_path), trials=1, minutes=None,
            stop_requested=lambda: False, told=print,
        )
