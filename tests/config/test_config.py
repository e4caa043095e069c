"""The defaults of each data set, overrides from the command line, and the stored form of a config."""
import dataclasses
import json
import subprocess
import sys

import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.meanings import meanings
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import ELSEWHERE, RunConfig, apply_overrides, described, differences, from_dict, to_dict
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import DATASETS, default_config


@pytest.mark.parametrize('dataset, layers, dropout, mask_ratio, norm_embedding', [
    ('ml-1m', 2, 0.2, 0.1, True),
    ('amazon-beauty', 1, 0.4, 0.2, False),
    ('amazon-video-games', 1, 0.4, 0.1, False),
    ('kuairand', 2, 0.2, 0.2, True),
    ('ml-100k', 2, 0.2, 0.1, True),
    ('interactions', 2, 0.2, 0.1, True),
])
def test_published_settings(dataset, layers, dropout, mask_ratio, norm_embedding):
    assert default_config(dataset) == RunConfig(
        dataset=dataset,
        model=ModelConfig(
            hidden_size=256, num_layers=layers, d_state=64, d_conv=4, expand=2, headdim=16,
            ngroups=1, beta=0.1, dropout_prob=dropout, norm_embedding=norm_embedding,
            backward_order='reversed', dtype='auto',
        ),
        data=DataConfig(
            mask_ratio=mask_ratio, max_history=0, timestamp_precision='exact',
            min_interactions=1 if dataset == 'interactions' else 5,  # A log of the user's own is kept whole.
        ),
        train=TrainConfig(
            targets_per_step=1024, max_epochs=300, learning_rate=1e-3, optimizer='adam',
            weight_decay=0.0, schedule='constant', clip_norm=0.0, patience=10, seed=2024,
        ),
    )


@pytest.mark.parametrize('dataset', DATASETS)
def test_every_dataset_has_a_config_of_its_own_name(dataset):
    assert default_config(dataset).dataset == dataset


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(ConfigError, match="amazon-beuty is unknown; did you mean 'amazon-beauty'"):
        default_config('amazon-beuty')


def test_overrides_are_typed_and_the_last_one_counts():
    config = apply_overrides(default_config('ml-1m'), [
        'model.num_layers=1', 'model.norm_embedding=false', 'model.backward_order=aligned',
        'train.learning_rate=1e-4', 'train.checkpoint_seconds=5', 'data.mask_ratio=0',
        'train.seed=7', 'model.num_layers=3',
    ])
    assert config.model == dataclasses.replace(
        default_config('ml-1m').model, num_layers=3, norm_embedding=False, backward_order='aligned'
    )
    assert config.train.learning_rate == 1e-4 and config.train.seed == 7
    assert (config.train.checkpoint_seconds, type(config.train.checkpoint_seconds)) == (5.0, float)
    assert (config.data.mask_ratio, type(config.data.mask_ratio)) == (0.0, float)


def test_no_override_changes_nothing():
    assert apply_overrides(default_config('kuairand'), []) == default_config('kuairand')


@pytest.mark.parametrize('override, message', [
    ('model.num_layer=1', "no key 'model.num_layer'; did you mean 'model.num_layers'"),
    ('num_layers=1', "no key 'num_layers'; did you mean 'model.num_layers'"),
    ('train.mask_ratio=.1', "no key 'train.mask_ratio'; did you mean 'data.mask_ratio'"),
    ('train.learning_rat=1', "no key 'train.learning_rat'; did you mean 'train.learning_rate'"),
    ('=1', "no key ''"),
    ('train.lr=1', "no key 'train.lr'; it is called 'train.learning_rate' here"),
    ('batch_size=1', "it is called 'train.targets_per_step' here"),
    ('train.epochs=1', "it is called 'train.max_epochs' here"),
    ('model.dim=1', "it is called 'model.hidden_size' here"),
    ('model.dropout=1', "it is called 'model.dropout_prob' here"),
    ('loss.label_smoothing=.1', "the key 'loss.label_smoothing' needs train.loss=full beside it"),
    ('loss.t=.1', "the key 'loss.t' needs train.loss=gbce beside it"),
    ('zzz=1', "no key 'zzz'[.] `ssd4rec settings` lists all of them"),
    ('model.num_layers', 'write it as --set=key=value'),
    ('model.num_layers=two', "model.num_layers takes a whole number, not 'two'"),
    ('model.num_layers=2.0', "model.num_layers takes a whole number, not '2.0'"),
    ('model.num_layers=', "model.num_layers takes a whole number, not ''"),
    ('model.norm_embedding=1', "model.norm_embedding takes true or false, not '1'"),
    ('train.learning_rate=fast', "train.learning_rate takes a number, not 'fast'"),
    ('model.beta=nan', "model.beta takes a number, not 'nan'"),
    ('train.checkpoint_seconds=inf', "train.checkpoint_seconds takes a number, not 'inf'"),
    ('model.headdim=48', 'model.headdim=48 does not divide expand . hidden_size = 512'),
    ('model.dropout_prob=1', 'model.dropout_prob=1.0 must be in'),
    ('data.timestamp_precision=float16', "timestamp_precision='float16' must be one of exact"),
    ('train.optimizer=sgd', "train.optimizer='sgd' must be one of adam, adamw"),
])
def test_overrides_that_cannot_be_used(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(default_config('ml-1m'), [override])


def test_keys_of_a_section_are_checked_together():
    """Each of the two alone is refused, so applying them one by one would fail in any order."""
    pair = ['train.weight_decay=0.1', 'train.optimizer=adamw']
    for order in (pair, pair[::-1]):
        assert apply_overrides(default_config('ml-1m'), order).train.weight_decay == 0.1


@pytest.mark.parametrize('dataset', DATASETS)
def test_json_round_trip(dataset):
    config = apply_overrides(default_config(dataset), ['train.learning_rate=0.3', 'model.beta=0.1'])
    assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


def test_a_setting_that_an_older_version_did_not_have_is_what_that_version_did():
    stored = to_dict(default_config('ml-1m'))
    del stored['model']['bidirectional']
    assert from_dict(stored).model.bidirectional == 'all'


def edit(section, key, value):
    stored = to_dict(default_config('ml-1m'))
    stored[section][key] = value
    return stored


@pytest.mark.parametrize('stored, message', [
    (edit('model', 'width', 3), "another version of this project.*'width'"),
    (edit('model', 'num_layers', '2'), 'another version of this project'),
    (edit('model', 'num_layers', 0), 'model.num_layers=0 must be at least 1'),
    ({'dataset': 'ml-1m'}, "another version of this project: 'model'"),
])
def test_stored_configs_that_cannot_be_used(stored, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(stored)


def test_differences_name_key_and_both_values():
    there = default_config('ml-1m')
    here = apply_overrides(default_config('ml-100k'), ['model.num_layers=1', 'train.max_epochs=7'])
    assert differences(there, there) == []
    assert differences(there, here) == [
        'dataset: ml-1m there, ml-100k here',
        'model.num_layers: 2 there, 1 here',
        'train.max_epochs: 300 there, 7 here',
    ]


def test_every_key_can_be_overridden_with_its_own_default():
    config = default_config('kuairand')
    flat = {
        f'{section}.{key}': value
        for section, part in to_dict(config).items() if section != 'dataset'
        for key, value in part.items()
    }
    assert {'model.num_layers', 'data.mask_ratio', 'train.seed'} < set(flat)
    assert apply_overrides(config, [f'{k}={v}' for k, v in flat.items()]) == config


def test_other_tools_names_mean_keys_that_there_are():
    known = set(described(default_config('ml-1m')))
    assert set(ELSEWHERE.values()) <= known


@pytest.mark.parametrize('dataset', DATASETS)
def test_every_key_has_a_meaning(dataset):
    described_keys = described(default_config(dataset))
    assert len(described_keys) > 40
    assert [key for key, setting in described_keys.items() if len(setting.meaning) < 20] == []


def test_a_meaning_is_the_entry_of_the_docstring_with_its_further_lines():
    @dataclasses.dataclass
    class Settings:
        """Of a test.

        width: how wide it
          is. depth: no entry of its own.
        low, high: the ends.
        other: no field.
        """

        width: int = 1
        depth: int = 2
        low: int = 3
        high: int = 4

    assert meanings(Settings) == {
        'width': 'how wide it is. depth: no entry of its own.', 'low': 'the ends.', 'high': 'the ends.',
    }


def test_a_config_is_read_without_jax():
    code = (
        "import sys, ssd4rec_jax.presets as p; p.default_config('ml-1m'); "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
