"""Which settings a training begins with."""
import dataclasses

import numpy as np
import pytest

from ssd4rec_jax.config.run import from_dict, to_dict
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import default_config, preset_config
from ssd4rec_jax.presets.families import better
from tests.tiny import tiny_dataset


def unwanted(*_):
    raise AssertionError('only auto looks at the log or the machine')


def preset(dataset, name=None, prepared=unwanted, platform=unwanted):
    return preset_config(dataset, name, prepared, platform)[0]


@pytest.mark.parametrize('dataset', ['amazon-beauty', 'amazon-video-games', 'ml-100k', 'kuairand'])
def test_measured_data_sets_have_better_settings_and_keep_the_published_ones(dataset):
    published, best = default_config(dataset), preset(dataset)
    assert preset(dataset, 'best') == best != published == preset(dataset, 'published')
    small = preset(dataset, 'small')
    assert small.model.hidden_size == 32 < best.model.hidden_size and small.model.members == 1
    # Histories of about 9 items, as Amazon's are, gain by several networks; the others were not measured.
    assert (best.model.members, best.model.follower_weight) == ((3, 1.5) if 'amazon' in dataset else (1, 0.0))
    assert best.model.fit_followers == (dataset == 'kuairand')
    assert best.model.seen_bias and best.train.objective == 'fastest' and best.model.prefixes_share_a_pass
    assert dataclasses.replace(best.data, mask_ratio=published.data.mask_ratio) == published.data


def test_an_own_log_gets_settings_that_fit_it():
    log = tiny_dataset()
    asked = []

    def prepared(config):
        asked.append(config)
        return log

    short = preset('interactions', None, prepared, lambda: 'cpu')
    assert asked == [default_config('interactions')]
    assert (short.model.num_layers, short.model.hidden_size) == (1, 64)
    # A sample of 2,048 would hold all of its 30 items.
    assert (short.train.loss, short.train.table_optimizer) == ('full', 'adagrad')
    assert preset('interactions', None, prepared, lambda: 'gpu').model.hidden_size == 256
    log = dataclasses.replace(log, items=log.items.repeat(8), offsets=8 * log.offsets)
    assert preset('amazon-beauty', 'auto', prepared, lambda: 'cpu').model.num_layers == 2


@pytest.mark.parametrize('mean_length, most', [(9.0, 2048), (100.0, 1024)])
def test_a_sample_is_smaller_than_the_catalogue(mean_length, most):
    published = default_config('interactions')
    configs = [
        better(published, mean_length=mean_length, num_items=items, num_targets=10**5) for items in (most, most + 1)
    ]
    assert [from_dict(to_dict(config)) for config in configs] == configs
    whole, sampled = (config.train for config in configs)
    assert (whole.loss, sampled.loss, sampled.num_negatives) == ('full', 'sampled', most)


@pytest.mark.parametrize('history, weight, said', [
    # Of 8 interactions 0 and 1 repeat an item; 12% is above the limit.
    ([1, 2, 3, 4, 5, 6, 7, 8], 2.0, 'followers rank higher (0% of'),
    ([1, 2, 3, 1, 5, 6, 7, 8], 0.0, 'validation weighs followers (12% of'),
])
def test_followers_rank_higher_where_items_do_not_come_back(history, weight, said):
    log = dataclasses.replace(
        tiny_dataset(), items=np.array(3 * history, np.int32), offsets=np.array([0, 8, 16, 24]),
        user_ids=np.arange(3),
    )
    config, about = preset_config('interactions', None, lambda _: log, lambda: 'cpu')
    assert config.model.follower_weight == weight and said in about
    assert config.train.patience == (6 if weight else 16) and config.model.fit_followers == (not weight)
    # 5 targets of each of 180 users are 30 for each of 30 items: a network learns the followers by itself.
    dense = dataclasses.replace(
        log, items=np.tile(log.items, 60), offsets=8 * np.arange(181), user_ids=np.arange(180),
    )
    dense_config, about = preset_config('interactions', None, lambda _: dense, lambda: 'cpu')
    assert not dense_config.model.follower_weight and dense_config.model.fit_followers
    assert 'validation weighs followers' in about


def test_presets_that_there_are_not():
    assert preset('synthetic') == default_config('synthetic')
    with pytest.raises(ConfigError, match='--preset=auto'):
        preset('ml-1m', 'best')
