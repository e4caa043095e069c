"""Which file serves a data set, and what is said where none does."""
import gzip

import pytest

from ssd4rec_jax.data import sources
from ssd4rec_jax.data.sources import OFFICIAL, find_source
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.presets import DATASETS

INTER = 'user_id\titem_id\ttimestamp\na\tb\t1\n'


def test_every_configured_data_set_has_a_source():
    assert set(DATASETS) == {'synthetic', *OFFICIAL, 'interactions'}


def test_the_archive_goes_before_its_folder_before_inter_before_inter_gz(tmp_path):
    for name in ('ml-1m.inter.gz', 'ml-1m.inter', 'ml-1m/ratings.dat', 'ml-1m.zip'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(INTER.encode()))
        assert find_source('ml-1m', tmp_path).files[0].path == path


def test_one_of_two_logs_alone_is_refused(tmp_path):
    (tmp_path / 'log_standard_4_22_to_5_08_1k.csv').write_text('')
    with pytest.raises(DataError, match='log_standard_4_08_to_4_21_1k.csv is missing beside the other files'):
        find_source('kuairand-1k', tmp_path)


@pytest.mark.parametrize('name', OFFICIAL)
def test_an_empty_or_missing_folder_says_what_to_put_there(tmp_path, name):
    for folder, what in ((tmp_path, 'holds no file of this data set'), (tmp_path / 'gone', 'is not a folder')):
        with pytest.raises(DataError) as raised:
            find_source(name, folder)
        official = OFFICIAL[name]
        for part in (str(folder), what, official.file_name, official.address, f'{name}.inter'):
            assert part in str(raised.value)


def test_without_a_folder_the_official_file_is_downloaded_once(tmp_path, monkeypatch):
    calls = []

    def download(address, target, *, md5, size, form, member, progress):
        calls.append((address, md5, size))
        target.parent.mkdir(parents=True)
        target.write_bytes(b'archive')

    monkeypatch.setattr(sources, 'download', download)
    monkeypatch.chdir(tmp_path)
    first, second = find_source('kuairand'), find_source('kuairand')
    assert calls == [(
        'https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz', '0820331067a3784d9691136f772b35a7', 47432272
    )]
    assert first == second and str(first.files[0].path) == 'data/kuairand/KuaiRand-Pure.tar.gz'


def test_content_hash_follows_the_bytes_and_the_columns(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text('user_id,item_id,timestamp,t2\na,b,1,2\n')
    hashes = {find_source('interactions', path).content_hash(), find_source('interactions', path).content_hash()}
    assert len(hashes) == 1
    hashes.add(find_source('interactions', path, options=TableOptions(time='t2')).content_hash())
    path.write_text('user_id,item_id,timestamp,t2\na,b,1,3\n')
    hashes.add(find_source('interactions', path).content_hash())
    assert len(hashes) == 3


@pytest.mark.parametrize('name, options, error, message', [
    ('ml-2m', {}, ConfigError, '--dataset=ml-2m is unknown: choose synthetic, kuairand'),
    ('ml-1m', {'options': TableOptions('u')}, ConfigError, 'with --dataset=interactions alone, not with ml-1m'),
    ('interactions', {}, DataError, 'needs --data_dir to name the log'),
    ('interactions', {'data_dir': 'nothing.csv'}, DataError, '--data_dir=nothing.csv: no such file'),
    ('interactions', {'data_dir': 'none*.csv'}, DataError, r'--data_dir=none\*.csv: no such file'),
    ('interactions', {'data_dir': 'empty'}, DataError, '--data_dir=empty: the folder is empty'),
    ('ml-1m', {'data_dir': 'log.txt'}, DataError, 'is a file: name the folder that holds ml-1m.zip'),
])
def test_wrong_names_and_options(tmp_path, monkeypatch, name, options, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'log.txt').write_text(INTER)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(error, match=message):
        find_source(name, **options)


@pytest.mark.parametrize('separator', ['ab', '', 'é', '"'])
def test_a_separator_that_cannot_be(tmp_path, separator):
    path = tmp_path / 'log.txt'
    path.write_text(INTER)
    with pytest.raises(ConfigError, match=f"--separator='{separator}' must be one character"):
        find_source('interactions', path, options=TableOptions(separator=separator)).read()


def test_the_archive_itself_may_be_named(tmp_path):
    (tmp_path / 'ml-1m.zip').write_bytes(b'')
    assert find_source('ml-1m', tmp_path / 'ml-1m.zip') == find_source('ml-1m', tmp_path)
