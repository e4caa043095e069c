"""Everybody's recommendations by several processes: one process's rows, in one file for each process."""
import dataclasses

import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.commands.parts_folder import check_parts_folder, missing_parts, part_name
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.followers import followers_of
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.run.model_folder import save_model
from tests.processes import finished, start
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A model that is not trained, of 61 users; no count of devices here divides the 35 rows of its item table."""
    config = dataclasses.replace(MODEL, seen_bias=True, follower_weight=1.0)
    dataset = tiny_dataset(users=61, items=34)
    path = tmp_path_factory.mktemp('parts') / 'model'
    network, params = init_network(config, dataset.num_items, seed=1)
    save_model(
        path, RunConfig('interactions', config, DATA, TRAIN), dataset, network.whole(params), step=1, best_epoch=1,
        followers=followers_of(config, dataset),
    )
    return path


def test_shares_of_everybody_are_everybody(model):
    recommender = Recommender.load(model)
    shares = [pl.concat(recommender.recommend_in_parts('all', k=3, share=(n, 4))) for n in range(4)]
    assert [share['user'].n_unique() for share in shares] == [15, 15, 15, 16]
    assert pl.concat(shares).drop('score').equals(recommender.recommend('all', k=3).drop('score'))


def test_a_folder_of_parts_knows_what_is_missing_and_refuses_what_is_not_its_own(tmp_path):
    path, asked = check_parts_folder('--output', str(tmp_path / 'all')), {'k': 3, 'only': None}
    assert missing_parts(path, 3, asked) == [0, 1, 2]
    (path / part_name(1, 3)).write_bytes(b'rows')
    (path / '.part-00003-of-00003.parquet.4711').write_bytes(b'half')  # of a process that was killed
    assert missing_parts(path, 3, asked) == [0, 2] and (path / 'part-00002-of-00003.parquet').exists()
    for parts, other, said in ((2, asked, 'parts: 3 there, 2 now'), (3, {'k': 4, 'only': None}, 'k: 3 there, 4 now')):
        with pytest.raises(UserError, match=said):
            missing_parts(path, parts, other)
    assert missing_parts(path, 3, asked) == [0, 2]
    (path / 'asked.json').write_text('{"k": 3}')
    with pytest.raises(UserError, match='damaged'):
        missing_parts(path, 3, asked)
    (path / 'asked.json').unlink()
    with pytest.raises(UserError, match='holds parts, and no asked.json'):
        missing_parts(path, 3, asked)
    (path / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='holds notes.txt'):
        missing_parts(path, 3, asked)
    for name, said in (('all.parquet', 'name a folder'), ('absent/all', 'there is no folder'), ('', 'name a folder'),
                       ('all/notes.txt', 'is a file')):
        with pytest.raises(UserError, match=said):
            check_parts_folder('--output', str(tmp_path / name) if name else None)


@pytest.mark.slow
@pytest.mark.parametrize('shards', [1, 4])
def test_two_processes_write_what_one_writes(model, tmp_path, shards):
    asked = '--users=all', '--k=5', '--exclude_seen', '--exclude=1003'

    def ask(count, output, *more, asked=asked):
        flags = *asked, f'--output={output}', f'--model_shards={shards if count > 1 else 1}', *more
        return finished(start(
            count, model, *flags, devices=2, cwd=tmp_path, program=('-m', 'tests.patient', 'experiments.recommend'),
        ))

    (one,) = ask(1, 'one.parquet')
    assert one.returncode == 0, one.stderr
    for done in ask(2, 'all'):
        assert done.returncode == 0, done.stderr[-2000:]
    files = [tmp_path / 'all' / part_name(number, 2) for number in range(2)]
    expected, found = pl.read_parquet(tmp_path / 'one.parquet'), pl.concat(map(pl.read_parquet, files))
    assert found.drop('score').equals(expected.drop('score'))
    np.testing.assert_allclose(found['score'], expected['score'], rtol=1e-5, atol=1e-5)
    assert pl.read_parquet(files[0])['user'].n_unique() == 30
    if shards == 4:  # again: one part has gone, then another question
        first = files[0].stat()
        files[1].unlink()
        for done in ask(2, 'all'):
            assert done.returncode == 0, done.stderr[-2000:]
        assert files[0].stat().st_mtime_ns == first.st_mtime_ns
        assert pl.concat(map(pl.read_parquet, files)).drop('score').equals(expected.drop('score'))
        for done in ask(2, 'all', '--k=6'):
            assert done.returncode == 1 and 'k: 5 there, 6 now' in done.stderr
        for done in ask(2, 'other', asked=('--users=100',)):
            assert done.returncode == 1 and 'run other questions as one process' in done.stderr
        assert ask(1, 'other.csv', asked=('--users=100',))[0].returncode == 0
        for done in ask(2, 'other.parquet'):
            assert done.returncode == 1 and 'name a folder' in done.stderr
