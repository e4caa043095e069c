"""The studies of the package and of a user's file, and what is said where a file cannot be used."""
import pytest

from ssd4rec_jax.config.run import apply_overrides, flat
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import fixed_config
from ssd4rec_jax.study.grid import cells, distinct, known, read_study

STUDIES = (
    'overall', 'beta', 'mask_ratio', 'max_length', 'efficiency', 'layers', 'backward_order', 'components', 'packing',
    'recipe',
)


def grid(name, seeds=2, overrides=(), dataset='amazon-beauty'):
    study = read_study(name)
    own = cells(
        study.rows, seeds, lambda preset: fixed_config(dataset, preset)[0],
        lambda config: apply_overrides(config, known(list(overrides), config)),
    )
    return study, own


@pytest.mark.parametrize('name', STUDIES)
def test_the_studies_of_the_package_make_configs(name):
    study, own = grid(name, overrides=['model.hidden_size=64', 'train.seed=7'])
    names = [cell.name for cell in own]
    assert len(set(names)) == len(names) and study.about.endswith(('?', '.', ')'))
    trained = [cell for cell in own if cell.seed is not None]
    assert {cell.seed for cell in trained} == {7, 8} and len(trained) == 2 * len({c.row.name for c in trained})
    for cell in trained:
        assert cell.config.train.seed == cell.seed
        assert cell.config.model.hidden_size == (32 if cell.row.name == 'ssd4rec-small' else 64)
        if study.x:
            assert flat(cell.config)[study.x] == cell.row.x
            assert cell.name == f'{cell.row.series}_{study.x.partition(".")[2]}={cell.row.x}-{cell.seed}'


def test_what_makes_a_row_comes_after_what_is_said_for_all():
    _, own = grid('components', overrides=['data.mask_ratio=0.4'])
    found = {cell.row.name: cell.config.data.mask_ratio for cell in own}
    assert found['without-mask'] == 0 and found['all'] == 0.4
    _, own = grid('overall', seeds=1)
    presets = {cell.row.name: cell.config for cell in own if cell.row.name.startswith('ssd4rec')}
    assert presets['ssd4rec-best'] == fixed_config('amazon-beauty', 'best')[0]
    assert presets['ssd4rec-small'].model.hidden_size == 32
    assert [cell.seed for cell in own if cell.row.counted == 'popularity'] == [None]


def test_peers_take_what_was_published_for_the_log():
    beauty, movies = (
        {cell.row.name: flat(cell.config).get('model.max_length') for cell in grid('overall', 1, (), dataset)[1]}
        for dataset in ('amazon-beauty', 'ml-100k')
    )
    assert (beauty['sasrec'], movies['sasrec']) == (50, 200)
    assert {row for row in movies if movies[row] == 200} == {'sasrec', 'sasrec_gbce', 'hstu', 'tim4rec'}


def test_a_row_that_another_one_equals_is_left_out():
    study = read_study('components')
    own = cells(study.rows, 2, lambda preset: fixed_config('ml-100k', preset)[0], lambda config: config)
    kept, same = distinct(own, study.against)  # This preset has neither a backward direction nor followers.
    assert same == {'without-backward': 'all', 'without-followers': 'all'}
    assert kept == [cell for cell in own if cell.row.name not in same] and len(kept) == len(own) - 4
    kept, same = distinct(own, 'without-backward')
    assert same == {'all': 'without-backward', 'without-followers': 'without-backward'}
    counted = grid('overall', seeds=1)[1]
    assert distinct(counted) == (counted, {})


def test_a_peer_in_the_training_of_a_preset_keeps_its_published_network():
    _, own = grid('recipe', seeds=1)
    configs = {cell.row.name: cell.config for cell in own if not cell.row.counted}
    best = fixed_config('amazon-beauty', 'best')[0]
    assert {name for name in configs if not name.startswith('ssd4rec')} == {
        cell.row.name for cell in own if cell.row.is_peer and not cell.row.counted
    }
    for name, config in configs.items():
        assert (config.train, config.data) == (best.train, best.data), name
    assert flat(configs['sasrec'])['model.dropout_prob'] == 0.2  # sasrec's own default is 0.5
    assert flat(configs['sasrec'])['model.max_length'] == 1024


@pytest.mark.parametrize('text, message', [
    ('[other]\n', "study=mine is unknown"),
    ('[mines]\n', "did you mean 'mines'"),
    ('[mine]\nabout = "?"\n', 'has no rows'),
    ('[mine]\nrow = []\n', "has no key 'row'; did you mean 'rows'"),
    ('[mine]\nabout = 3\n', 'about is 3: it takes a str'),
    ('[[mine.rows]]\nname = "a"\n[[mine.rows]]\nname = "a"\n', 'two rows of the name a'),
    ('[[mine.rows]]\nname = "a/b"\n', "name='a/b' must consist of letters"),
    ('[[mine.rows]]\nnetwork = "sasrec"\nname = "a/b"\n', "name='a/b' must consist of letters"),
    ('[[mine.rows]]\nnetwork = "sasrec"\ncounted = "popularity"\n', 'are two rows'),
    ('[[mine.rows]]\nset = {"model.beta" = 0.1}\n', "name='' must consist of letters"),
    ('[[mine.rows]]\ncounted = "popular"\n', "no counted='popular'; did you mean 'popularity'"),
    ('[mine]\nx = "model.beta"\n[[mine.rows]]\nname = "a"\n', 'needs both x'),
    ('[mine]\nagainst = "b"\n[[mine.rows]]\nname = "a"\n', "against='b' names none of its rows"),
    ('[[mine.rows]]\nnetwork = "bert4rec"\npreset = "best"\n', "bert4rec lives by its own training"),
    ('[[mine.rows]]\nnetwork = "*"\npreset = "best"\n', "lives by its own training, which preset='best' replaces"),
    ('[mine\n', 'is no TOML file'),
])
def test_files_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / 'studies.toml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study('mine', path)


@pytest.mark.parametrize('key, value, said', [
    ('split', '"last_n"', "data.split is 'leave_one_out' and 'last_n'"),
    ('min_user_interactions', '9', 'data.user_core is 5 and 9'),
])
def test_rows_that_would_test_other_items_are_refused(tmp_path, key, value, said):
    path = tmp_path / 'studies.toml'
    path.write_text(f'[mine]\n[[mine.rows]]\nname = "a"\n[[mine.rows]]\nname = "b"\nset = {{"data.{key}" = {value}}}\n')
    rows = read_study('mine', path).rows
    with pytest.raises(ConfigError, match=f'the rows a and b test other items: {said}'):
        cells(rows, 1, lambda preset: fixed_config('ml-100k', preset)[0], lambda config: config)


def test_a_setting_that_a_row_cannot_take_is_named(tmp_path):
    path = tmp_path / 'studies.toml'
    path.write_text('[mine]\n[[mine.rows]]\nname = "a"\nset = {"model.betas" = 1.0}\n')
    rows = read_study('mine', path).rows
    with pytest.raises(ConfigError, match="row a: model.betas=1.0: there is no key 'model.betas'; did you mean"):
        cells(rows, 1, lambda preset: fixed_config('ml-100k', preset)[0], lambda config: config)
    with pytest.raises(ConfigError, match='cannot be read'):
        read_study('mine', tmp_path / 'none.toml')
