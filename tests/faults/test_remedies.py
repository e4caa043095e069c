"""Each message that names a way out is provoked, and what it says is done: then it works.

The last test of this file finds a new message without such a test.
"""
import dataclasses
import functools
import gzip
import http.server
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import polars as pl
import pytest

from ssd4rec_jax import Recommender
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.run import flat
from ssd4rec_jax.data import download, sources
from ssd4rec_jax.data.dataset import open_dataset, with_split
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.sources import FrameSource
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.parallel import out_of_memory
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.rank.evaluation import Evaluator
from ssd4rec_jax.run import checkpoints
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.manifest import MANIFEST, write_manifest
from ssd4rec_jax.run.saved_run import load_run
from tests.faults.inside import TINY, Done, call, write_log
from tests.faults.messages import ROOT, messages

EVALUATE, RECOMMEND = ('evaluate', '--workdir=run'), ('recommend', '--workdir=run', '--users=1', '--k=2')
# The messages whose way out is gone here: texts of the sources, in which {} stands for any text.
TESTED: set[str] = set()


def tries(*said: str) -> Callable[[Callable], Callable]:
    """Mark a test as one that does what these messages say."""
    TESTED.update(said)
    return lambda test: test


def says(message: str, text: str) -> bool:
    """Whether a text holds a message of TESTED."""
    assert message in TESTED
    return re.search('.*'.join(map(re.escape, message.split('{}'))), text, re.DOTALL) is not None


def _sentences(done: Done) -> int:
    return sum(line.startswith('error: ') for line in done.err.splitlines())


def refused(done: Done, *said: str) -> None:
    """The command failed with one sentence, which holds each of these messages."""
    assert done.code in (1, 2) and not done.is_traceback and _sentences(done) == 1, done
    assert all(says(message, done.err) for message in said), done.err


def works(done: Done, *unsaid: str) -> Done:
    """The command ended well, without a word of these messages."""
    assert done.code == 0 and not done.is_traceback, done
    assert not any(says(message, done.out + done.err) for message in unsaid), done
    return done


# ---- logs


def rows(*header: str, line: str = '{u},{i},{t}', users: int = 12, length: int = 6, start: int = 1_600_000_000) -> str:
    """A log of users with as many interactions with six items."""
    lines = [
        line.format(u=u, i=(u + n) % 6, t=start + 100 * n, n=n, date=f'{n + 1:02}/06/2024')
        for u in range(users) for n in range(length)
    ]
    return '\n'.join([*header, *lines]) + '\n'


LOG = rows('user_id,item_id,timestamp')
HERE = '--dataset=interactions', '--data_dir=log.csv'
PARTS = {f'{part}.csv': rows('user_id,item_id,timestamp', start=1_600_000_000 + 10_000 * n)
         for n, part in enumerate(('train', 'valid', 'test'))}


class Case(NamedTuple):
    """A message of `prepare`, and what it says.

    wrong: flags that bring it, with `files` in the folder. right: flags with which it goes away, once `mended` are
    there too (a file whose text is '' is removed first). warns: the command did not fail.
    """

    said: str
    files: dict[str, str | bytes]
    wrong: tuple[str, ...]
    right: tuple[str, ...]
    mended: dict[str, str | bytes] = {}
    warns: bool = False


def _zip(**members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for name, text in members.items():
            archive.writestr(f'{name}.csv', text)
    return out.getvalue()


def _log(text: str | bytes, said: str, *flags: str, **more: dict) -> Case:
    """A log that is refused, and the flags with which it is read."""
    return Case(said, {'log.csv': text}, HERE, (*HERE, *flags), **more)


SPLIT = '--set=data.split=files'
LOGS = [
    _log(rows('user_id,item_id,timestamp', line='{u},{i},{t}') + ',1,5\n', 'leave such rows out with --bad_rows=skip',
         '--bad_rows=skip', '--max_bad_share=0.05'),
    Case('more than --max_bad_share={}: correct them, or allow more', {'log.csv': LOG + ',1,5\n' * 20},
         (*HERE, '--bad_rows=skip'), (*HERE, '--bad_rows=skip', '--max_bad_share=0.5')),
    Case('columns, a separator and the like can be given with --dataset=interactions alone', {'ml/u.data': rows(
        line='{u}\t{i}\t3\t{t}')}, ('--dataset=ml-100k', '--data_dir=ml', '--separator=tab'),
        ('--dataset=interactions', '--data_dir=ml/u.data', '--separator=tab', '--columns=user,item,rating,time')),
    Case('or read a file of your own with --dataset=interactions', {'log.csv': LOG},
         ('--dataset=ml-100k', '--data_dir=log.csv'), HERE),
    Case('--dataset=interactions needs --data_dir to name the log', {'log.csv': LOG}, HERE[:1], HERE),
    Case('with --dataset=interactions it names the file itself', {'log.csv': LOG},
         ('--dataset=interactions', '--data_dir=logs.csv'), HERE),
    Case('or its files by a pattern such as {}/*{}', {'logs/a.csv': LOG, 'logs/notes.txt': 'mine'},
         ('--dataset=interactions', '--data_dir=logs'), ('--dataset=interactions', '--data_dir=logs/*.csv')),
    _log(rows('user_id,item_id,timestamp').encode() + b'\xff,1,1600000000\n',
         'is not UTF-8 text: name the encoding, such as --encoding=latin-1', '--encoding=latin-1'),
    _log(LOG.encode('utf-16-le'), 'looks like UTF-16 without a byte order mark: name it with --encoding=utf-16-le',
         '--encoding=utf-16-le'),
    Case('is not text in {} ({}): name another --encoding', {'log.csv': LOG.replace('0,', 'é,').encode('latin-1')},
         (*HERE, '--encoding=utf-16'), (*HERE, '--encoding=latin-1')),
    _log(rows('user_id^item_id^timestamp', line='{u}^{i}^{t}'), 'tell the fields apart with --separator',
         '--separator=^'),
    Case('--features has no value for each item', {'log.csv': rows(
        'user_id:token\titem_id_list:token_seq\titem_id:token', line='{u}\t{i}\t1', length=1)},
        (*HERE, '--features=price', '--set=data.min_interactions=1'), (*HERE, '--set=data.min_interactions=1')),
    _log(rows(line='{u},{i},5,{t}'), 'is no header: for a file without one name its {} columns in their order',
         '--columns=user,item,rating,time'),
    _log(rows(line='{u},{i}'), 'such as --columns={}{}', '--columns=user,item', '--time_column=none'),
    _log(rows('who,item_id,timestamp'), 'name it with {}{}; without a header, name all columns with --columns',
         '--user_column=who'),
    _log(rows('user_id,item_id', line='{u},{i}'), ', or take the order of the rows with --time_column=none',
         '--time_column=none'),
    Case('{} names it', {'log.csv': LOG}, (*HERE, '--item_column=item'), (*HERE, '--item_column=item_id')),
    Case('({} names another)', {'log.csv': rows('uid,author_id,item,time', line='{u},0,{i},{t}')}, HERE,
         (*HERE, '--user_column=uid', '--item_column=item', '--time_column=time'), warns=True),
    _log(LOG + '7,"1,5\n', 'a quote opens a field and none closes it: close it, or switch quotes off with --quote=none',
         '--quote=none'),
    _log(LOG + '7,"1"x,1600000000\n', 'double the quotes inside a field, or switch them off with --quote=none',
         '--quote=none'),
    Case('use --dataset=interactions with --{}_column (and --separator)',
         {'kuairand.inter': rows('who:token\titem_id:token\ttimestamp:float', line='{u}\t{i}\t{t}')},
         ('--dataset=kuairand', '--data_dir=.'),
         ('--dataset=interactions', '--data_dir=kuairand.inter', '--user_column=who', '--separator=tab')),
    _log(rows('user_id,item_id,timestamp', line='{u},{i},{date}'), 'name the format, such as --time_format="{}"',
         '--time_format=%d/%m/%Y'),
    Case('they are not of --time_format={}: name the format that they have', {'log.csv': rows(
        'user_id,item_id,timestamp', line='{u},{i},{date}')}, (*HERE, '--time_format=%Y.%m.%d'),
        (*HERE, '--time_format=%d/%m/%Y')),
    _log(rows('user_id,item_id,timestamp', line='{u},{i},1{n} June 2024'), 'or the format with --time_format',
         '--time_format=%d %B %Y'),
    _log(rows('user_id,item_id,timestamp', line='{u},{i},day {n}'), '--time_column=none takes the order of the rows',
         '--time_column=none'),
    _log(gzip.compress(LOG.encode())[:-9], 'cut short or damaged ({}): get the file again',
         mended={'log.csv': gzip.compress(LOG.encode())}),
    _log(b'PAR1damaged', 'cut short or damaged ({}): get the file again', mended={'log.csv': LOG}),
    _log(_zip(a=LOG, b='x'), 'unpack it and name the file of the log', mended={'log.csv': LOG}),
    Case('if the item stands first in its rows, as in Amazon\'s files of 2018, read it with --dataset=interactions '
         '--columns=item,user,rating,time', {'log.csv': rows(line='{i},{u},5,{t}')},
         (*HERE, '--columns=user,item,rating,time'), (*HERE, '--columns=item,user,rating,time'), warns=True),
    Case('give the whole log, or lower data.min_interactions', {'log.csv': LOG},
         (*HERE, '--set=data.min_interactions=20'), (*HERE, '--set=data.min_interactions=6')),
    Case('or hold out whole users with --set=data.split=users',
         {'log.csv': rows('user_id,item_id,timestamp', length=2)}, (*HERE, '--set=data.min_interactions=1'),
         (*HERE, '--set=data.min_interactions=1', '--set=data.split=users'), warns=True),
    # A log in three files.
    Case('data.split=files reads --dataset=interactions alone', PARTS, ('--dataset=ml-100k', '--data_dir=.', SPLIT),
         ('--dataset=interactions', '--data_dir=.', SPLIT)),
    Case('--train_file, --valid_file and --test_file are read with --set=data.split=files', PARTS,
         ('--dataset=interactions', '--train_file=train.csv', '--valid_file=valid.csv', '--test_file=test.csv'),
         ('--dataset=interactions', '--train_file=train.csv', '--valid_file=valid.csv', '--test_file=test.csv', SPLIT)),
    Case('--train_file, --valid_file and --test_file name one file twice', PARTS,
         ('--dataset=interactions', '--data_dir=.', '--valid_file=train.csv', SPLIT),
         ('--dataset=interactions', '--data_dir=.', SPLIT)),
    Case('data.split=files needs the file of each part: name it with --{}_file, or all by --data_dir', PARTS,
         ('--dataset=interactions', SPLIT), ('--dataset=interactions', '--data_dir=.', SPLIT)),
    Case('name the one with --{}_file', {**PARTS, 'test.old.csv': LOG},
         ('--dataset=interactions', '--data_dir=.', SPLIT),
         ('--dataset=interactions', '--data_dir=.', '--test_file=test.csv', SPLIT)),
    Case('name its time column with --time_column, or split by data.split=leave_one_out, last_n or users',
         {'log.csv': rows('user_id,item_id,timestamp,when', line='{u},{i},{n},{t}')}, (*HERE, '--set=data.split=time'),
         (*HERE, '--set=data.split=time', '--time_column=when')),
    Case('set data.split_valid_time and data.split_test_time', {'log.csv': LOG},
         (*HERE, '--set=data.split=time', '--set=data.split_test_time=1999-01-01'),
         (*HERE, '--set=data.split=time', '--set=data.split_valid_time=1600000300',
          '--set=data.split_test_time=1600000400')),
]
TESTED.update(case.said for case in LOGS)


@pytest.mark.parametrize('case', LOGS, ids=[case.said[:50] for case in LOGS])
def test_a_log_is_prepared_as_the_message_says(case, tmp_path):
    _write(tmp_path, case.files)
    prepare = functools.partial(call, 'prepare', folder=tmp_path)
    wrong = prepare('--output=wrong', *case.wrong)
    if case.warns:
        assert wrong.code == 0 and says(case.said, wrong.err), wrong
    else:
        refused(wrong, case.said)
    _write(tmp_path, case.mended)
    done = works(prepare('--output=right', *case.right), case.said)
    assert json.loads(done.out)['users'] in (6, 12, 13)


def _write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)



class _Server(http.server.BaseHTTPRequestHandler):
    """Answers with the first of server.answers as long as there are several."""

    def do_GET(self) -> None:
        answers = self.server.answers  # type: ignore[attr-defined]
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def beauty(monkeypatch) -> Iterator[list[tuple[int, bytes]]]:
    """What a server on this machine answers for amazon-beauty, of which an official 5-core has 12 users here."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Server)
    server.answers = [(200, rows(line='u{u},i{i},5.0,{t}').encode())]  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    monkeypatch.setitem(sources.OFFICIAL, 'amazon-beauty', dataclasses.replace(
        sources.OFFICIAL['amazon-beauty'], counts=(12, 6, 72),
        address=f'http://127.0.0.1:{server.server_port}/ratings_Beauty.csv',
    ))
    monkeypatch.setattr(download.time, 'sleep', lambda seconds: None)
    yield server.answers  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@tries('cannot download {} ({}): try again, {}', 'what arrived as {} is not the official file ({}) and was removed: '
       'try again, {}', 'try later, {}')
@pytest.mark.parametrize('failing, said', [
    ([(503, b'')] * 4, 'cannot download {} ({}): try again, {}'), ([(404, b'')], 'try later, {}'),
    ([(200, b'<html>')], 'what arrived as {} is not the official file ({}) and was removed: try again, {}'),
])
def test_a_download_is_tried_again_or_fetched_by_hand(beauty, tmp_path, failing, said):
    sound, = beauty
    prepare = functools.partial(call, 'prepare', '--dataset=amazon-beauty', folder=tmp_path)
    beauty[:] = [*failing, sound]
    refused(prepare(), said)
    expected = works(prepare()).out
    shutil.rmtree(tmp_path / 'data')
    beauty[:] = [*failing, sound]
    folder = re.search(r'put it into (\S+)', prepare().err)
    assert folder is not None
    Path(folder[1], 'ratings_Beauty.csv').write_bytes(sound[1])
    assert works(prepare()).out == expected


NOT_OFFICIAL = 'Remove it, and the same command downloads it again; a log of your own is named by --data_dir'


@tries(NOT_OFFICIAL)
def test_another_file_in_the_place_of_the_official_one(beauty, tmp_path):
    prepare = functools.partial(call, 'prepare', '--dataset=amazon-beauty', folder=tmp_path)
    _write(tmp_path, {'data/.keep': '', 'data/amazon-beauty/ratings_Beauty.csv': ''})
    (tmp_path / 'data/amazon-beauty/ratings_Beauty.csv').write_text(rows(line='u{u},i{i},5.0,{t}', users=9))
    done = prepare()
    refused(done, NOT_OFFICIAL)
    works(prepare('--data_dir=data/amazon-beauty'))
    (tmp_path / done.err.split()[1]).unlink()
    assert json.loads(works(prepare()).out)['users'] == 12


# ---- runs


SAVED = 'stopped and saved: the same command goes on from here'
BEST_LOST = 'the same training command goes on from the newest and finds the best anew'
NONE_SOUND = 'restore one from a copy, or start the training anew with --restart, which sets this run aside'
UNREADABLE = 'try again, or rename its folder to go on with the one before'
ANOTHER_CONFIG = 'Name another --workdir, set it aside with --restart, or go on with the new config with --adopt_config'
GONE = 'the prepared data of {} is no longer in {}: run its training command again, which prepares it'
ANOTHER_LOG = 'is not what its config.json names: run its training command again, which prepares it'


def parameters(root: Path, run: str = 'run') -> str:
    return json.loads((root / run / 'result.json').read_text())['parameters_sha256']


@tries(SAVED)
def test_a_stopped_run_goes_on_with_the_same_command(half, finished):
    assert says(SAVED, (half / 'said').read_text())
    works(call('train', *TINY, folder=half), SAVED)
    assert parameters(half) == parameters(finished)


@tries(BEST_LOST)
def test_a_best_checkpoint_that_is_lost_is_found_anew_by_the_same_command(half):
    kept = Checkpoints(half / 'run/checkpoints')
    best, *others = kept.steps()
    assert kept.best_step() == best and len(others) == 2
    shutil.rmtree(half / f'run/checkpoints/{best}')
    refused(call(*EVALUATE, folder=half), BEST_LOST)
    works(call('train', *TINY, folder=half))
    assert json.loads(works(call(*EVALUATE, folder=half)).out)['best_epoch'] == 2


@pytest.mark.slow
@tries(NONE_SOUND)
@pytest.mark.parametrize('way', ['restore', 'restart'])
def test_no_checkpoint_is_sound(half, finished, way):
    shutil.copytree(half / 'run', half / 'copy')
    metas = list(half.glob('run/checkpoints/*/meta.json'))
    for meta in metas:
        meta.write_text('{}')
    refused(call('train', *TINY, folder=half), NONE_SOUND)
    if way == 'restore':
        newest = max(Checkpoints(half / 'copy/checkpoints').steps())
        shutil.copytree(half / f'copy/checkpoints/{newest}', half / f'run/checkpoints/{newest}')
    works(call('train', *TINY, *(['--restart'] if way == 'restart' else []), folder=half))
    assert way == 'restore' or parameters(half) == parameters(finished)
    assert way == 'restore' or len(list(half.glob('run.1/checkpoints/*/meta.json'))) == len(metas)


@tries(UNREADABLE)
@pytest.mark.parametrize('way', ['again', 'rename'])
def test_a_disk_that_fails_to_read_a_checkpoint(half, finished, monkeypatch, way):
    newest, verify = max(Checkpoints(half / 'run/checkpoints').steps()), checkpoints.verify

    def fails(path: Path) -> None:
        if path.name == str(newest):
            raise OSError(5, 'Input/output error')
        verify(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, 'verify', fails)
        refused(call('train', *TINY, folder=half), UNREADABLE)
        if way == 'rename':
            (half / f'run/checkpoints/{newest}').rename(half / f'run/checkpoints/{newest}.unreadable')
            works(call('train', *TINY, folder=half))
    if way == 'again':
        works(call('train', *TINY, folder=half))
    assert parameters(half) == parameters(finished)


RESULT_UNREADABLE = '{} cannot be read ({}): try again'


@tries(RESULT_UNREADABLE)
def test_a_disk_that_fails_to_read_the_result(root, monkeypatch):
    read_bytes = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.name == 'result.json':
            raise OSError(5, 'Input/output error')
        return read_bytes(path)

    expected = parameters(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'read_bytes', fails)
        refused(call('train', *TINY, folder=root), RESULT_UNREADABLE)
    works(call('train', *TINY, folder=root))
    assert parameters(root) == expected and not list((root / 'run').glob('result.json.*'))


@tries(GONE)
@pytest.mark.parametrize('how', ['deleted', 'moved'])
def test_its_training_command_again_prepares_what_is_gone(from_checkpoints, how):
    root = from_checkpoints
    expected = works(call(*RECOMMEND, folder=root)).out
    if how == 'deleted':
        shutil.rmtree(root / 'data')
    else:
        root.rename(root.with_name('elsewhere'))
        root = root.with_name('elsewhere')
    refused(call(*RECOMMEND, folder=root), GONE)
    done = works(call('train', *TINY, folder=root))
    assert 'is prepared again' in done.out
    assert works(call(*RECOMMEND, folder=root), GONE).out == expected


@tries(ANOTHER_LOG)
def test_its_training_command_again_names_the_data_that_it_was_trained_on(from_checkpoints):
    root = from_checkpoints
    expected = works(call(*RECOMMEND, folder=root)).out
    write_log(root / 'other.csv', seed=1)
    works(call('prepare', '--dataset=interactions', '--data_dir=other.csv', '--output=other', folder=root))
    config = json.loads((root / 'run/config.json').read_text())
    (root / 'run/config.json').write_text(json.dumps({**config, 'prepared': str(root / 'other')}))
    refused(call(*RECOMMEND, folder=root), ANOTHER_LOG)
    works(call('train', *TINY, folder=root))
    assert works(call(*RECOMMEND, folder=root), ANOTHER_LOG).out == expected


FINISHED_ON_ANOTHER_LOG = (
    'holds a finished run on another log ({}; this one is {}): name another --workdir, or set it aside with --restart'
)
TRAINED_ON_ANOTHER_LOG = (
    'was trained on another log or other data settings (fingerprint {} there, {} here): name another --workdir'
)


@pytest.mark.slow
@tries(ANOTHER_CONFIG)
@pytest.mark.parametrize('way', ['--workdir=another', '--restart', '--adopt_config'])
def test_a_run_of_another_config(half, way):
    changed = *TINY, '--set=train.learning_rate=0.01', '--set=train.max_epochs=2'
    refused(call('train', *changed, folder=half), ANOTHER_CONFIG)
    works(call('train', *changed, way, folder=half))
    folder = half / ('another' if 'another' in way else 'run')
    assert json.loads((folder / 'config.json').read_text())['train']['learning_rate'] == 0.01
    assert (folder / 'result.json').exists() and (half / 'run.1').exists() == (way == '--restart')


@pytest.mark.slow
@tries(FINISHED_ON_ANOTHER_LOG, TRAINED_ON_ANOTHER_LOG)
@pytest.mark.parametrize('is_finished, way', [(True, '--workdir=another'), (True, '--restart'), (False, '--workdir=b')])
def test_a_run_on_another_log(root, is_finished, way):
    write_log(root / 'other.csv', seed=1)
    if not is_finished:
        (root / 'run/result.json').unlink()
    other = *TINY, '--data_dir=other.csv', '--set=train.max_epochs=2'
    said = FINISHED_ON_ANOTHER_LOG if is_finished else TRAINED_ON_ANOTHER_LOG
    refused(call('train', *other, folder=root), said)
    works(call('train', *other, way, folder=root))


WITHOUT_CONFIG = 'holds checkpoints but no config.json: name another --workdir'
HELD = 'another process is training in {}: wait for it or name another --workdir'
CONFIG_DAMAGED = '{} cannot be read ({}); restore it or name another --workdir'


@tries(WITHOUT_CONFIG, HELD, CONFIG_DAMAGED)
def test_another_workdir_is_free_where_this_one_is_not(root):
    config = (root / 'run/config.json').read_bytes()
    (root / 'run/config.json').write_bytes(b'{')
    refused(call('train', *TINY, folder=root), CONFIG_DAMAGED)
    (root / 'run/config.json').unlink()
    refused(call('train', *TINY, folder=root), WITHOUT_CONFIG)
    (root / 'run/config.json').write_bytes(config)
    holder = RunFolder(root / 'run')
    holder.lock()
    refused(call('train', *TINY, folder=root), HELD)
    works(call('train', *TINY, '--workdir=another', folder=root))
    del holder
    works(call('train', *TINY, folder=root))
    assert parameters(root, 'another') == parameters(root)


NO_RESULT = '--final={} holds no finished run (result.json): train one on the same log first'
RESULT_DAMAGED = 'is damaged ({}): run its training command again, which computes it from the best checkpoint'


@pytest.mark.slow
@tries(NO_RESULT, RESULT_DAMAGED, '--final={} held nothing out, so that no epoch is known to be best: name another')
def test_the_final_run_needs_the_result_of_another(root):
    final = *TINY, '--workdir=final', '--final=run'
    result = (root / 'run/result.json').read_text()
    (root / 'run/result.json').write_text(result[:-9])
    refused(call('train', *final, folder=root), RESULT_DAMAGED)
    works(call('train', *TINY, folder=root))
    (root / 'run/result.json').unlink()
    refused(call('train', *final, folder=root), NO_RESULT)
    works(call('train', *TINY, folder=root))
    works(call('train', *final, folder=root))
    refused(call('train', *final[:-1], '--final=final', folder=root),
            '--final={} held nothing out, so that no epoch is known to be best: name another')


MODEL_DAMAGED = 'the model in {} is damaged: {}; copy it again or save it anew'
MODEL_UNREADABLE = 'the model in {} cannot be read ({}): copy it again'
OTHER_FORMAT = 'use the version of ssd4rec-jax that saved it, or save it again'


@tries(MODEL_DAMAGED, MODEL_UNREADABLE, OTHER_FORMAT)
def test_a_model_that_is_damaged_is_copied_again_or_saved_anew(root):
    elsewhere = root / 'model'
    copy, save = functools.partial(shutil.copytree, root / 'run/model', elsewhere), Recommender.load(root / 'run').save
    recommend = functools.partial(call, *RECOMMEND, '--workdir=model', folder=root)
    copy()
    expected = works(recommend()).out
    (elsewhere / 'weights.safetensors').write_bytes(b'')
    refused(recommend(), MODEL_DAMAGED)
    save(elsewhere)
    assert works(recommend()).out == expected
    (elsewhere / 'weights.safetensors').write_bytes(b'')
    _write_manifest(elsewhere)
    refused(recommend(), MODEL_UNREADABLE)
    shutil.rmtree(elsewhere)
    copy()
    assert works(recommend()).out == expected
    description = json.loads((elsewhere / 'model.json').read_text())
    (elsewhere / 'model.json').write_text(json.dumps({**description, 'format_version': 9}))
    _write_manifest(elsewhere)
    refused(recommend(), OTHER_FORMAT)
    save(elsewhere)
    assert works(recommend()).out == expected


def _write_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    write_manifest(folder)


WORKDIR = 'give --workdir, the folder of a training run'
ASK = 'give one of --users (of the log; --users=all for all of them), --users_file, --history and --histories'
QUOTES = 'ids separated by commas, or a JSON list where an id holds a comma, a quote or an outer blank: {}'


@tries(WORKDIR, ASK, 'Ids on the command line are {}', QUOTES)
def test_flags_that_a_command_asks_for(root):
    refused(call('recommend', '--users=1', folder=root), WORKDIR)
    refused(call('recommend', '--workdir=run', folder=root), ASK)
    (root / 'ids.txt').write_text('1\n2\n')
    (root / 'histories.jsonl').write_text('[1, 2]\n')
    for way in ('--users=1', '--users=all', '--users_file=ids.txt', '--history=1,2', '--histories=histories.jsonl'):
        works(call('recommend', '--workdir=run', way, folder=root))
    unknown = call('recommend', '--workdir=run', '--history=none,1', folder=root)
    assert unknown.code == 3 and says('Ids on the command line are {}', unknown.err) and says(QUOTES, unknown.err)
    assert works(call('recommend', '--workdir=run', '--history=["1", "2"]', folder=root)).out == (
        works(call('recommend', '--workdir=run', '--history=1,2', folder=root)).out
    )


# ---- settings


def settings(*flags: str) -> Done:
    return call('settings', *flags, folder=ROOT)


ADAMW = 'train.weight_decay needs train.optimizer=adamw; plain Adam has none'
WARMUP = 'train.schedule=warmup_cosine needs train.decay_steps={} above train.warmup_steps={}'


@tries(' `ssd4rec settings` lists all of them', ADAMW, WARMUP)
def test_settings_that_belong_together():
    refused(settings('--set=train.weight_decay=0.1'), ADAMW)
    works(settings('--set=train.weight_decay=0.1', '--set=train.optimizer=adamw'))
    refused(settings('--set=train.schedule=warmup_cosine', '--set=train.warmup_steps=9'), WARMUP)
    works(settings('--set=train.schedule=warmup_cosine', '--set=train.warmup_steps=9', '--set=train.decay_steps=10'))
    refused(settings('--set=nothing.resembles=1'), ' `ssd4rec settings` lists all of them')
    listed = re.findall(r'(?m)^(\w+\.\w+) = (\S*)', works(settings('--dataset=interactions')).out)
    assert {key for key, _ in listed} == set(flat(default_config('interactions'))) - {'dataset'}
    works(settings('--dataset=interactions', *(f'--set={key}={value.strip(chr(39))}' for key, value in listed)))


TWO_PASSES = 'train.objective=one_pass would not be exact: {}; set train.objective=prefix'
SAMPLED = 'model.table_dtype=bfloat16 needs train.loss=sampled'
ROWS = 'data.rows_per_step={} is more than the {} histories that there are to train on: lower it'
X64 = 'model.dtype=float64 needs JAX_ENABLE_X64=1'


@pytest.mark.slow
@tries(TWO_PASSES, SAMPLED, ROWS, X64)
@pytest.mark.parametrize('said, wrong, right', [
    (TWO_PASSES, ('train.objective=one_pass', 'model.num_layers=2'), ('train.objective=prefix', 'model.num_layers=2')),
    (SAMPLED, ('model.table_dtype=bfloat16', 'train.loss=full'), ('model.table_dtype=bfloat16', 'train.loss=sampled')),
    (ROWS, ('data.rows_per_step=1000',), ('data.rows_per_step=16',)),
    (X64, ('model.dtype=float64',), ('model.dtype=float64',)),
])
def test_a_setting_that_this_run_cannot_have(finished, tmp_path, request, said, wrong, right):
    def train(settings: tuple[str, ...]) -> Done:
        log = f'--data_dir={finished}/log.csv'
        return call('train', *TINY, log, *(f'--set={s}' for s in settings), '--set=train.max_epochs=1', folder=tmp_path)

    refused(train(wrong), said)
    if said == X64:
        request.getfixturevalue('x64')
    works(train(right))


CHEAPER, LONGEST = '; --set={} would read {}, {} times less', 'Nothing is cut; data.max_history would cut'


@pytest.mark.slow
@tries(CHEAPER, LONGEST)
def test_the_setting_that_makes_an_epoch_cheaper(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f'{u},{i},{t}' for u in range(8) for t, i in enumerate(rng.integers(0, 9, 700 if u == 0 else 6))]
    (tmp_path / 'log.csv').write_text('\n'.join(['user_id,item_id,timestamp', *lines]) + '\n')
    train = functools.partial(
        call, 'train', *TINY, '--set=train.max_epochs=1', '--set=data.tokens_per_row=64',
        '--set=train.targets_per_step=512', folder=tmp_path,
    )
    done = works(train())
    setting, tokens = re.search(r'--set=(\S+) would read ([0-9,]+), ', done.out).groups()
    assert says(LONGEST, done.err)
    again = works(train(f'--set={setting}', '--restart'), CHEAPER)
    assert f'an epoch reads {tokens} tokens' in again.out
    works(train('--set=data.max_history=20', '--restart'), LONGEST)


MEMORY = 'out of memory in {}: lower train.targets_per_step (fewer tokens a step), then model.hidden_size; {}'
DIVERGED = 'Lower train.learning_rate or set train.clip_norm'
NAN_SCORES = 'The checkpoint comes from a run that diverged: lower train.learning_rate'


@pytest.mark.slow
@tries(MEMORY)
@pytest.mark.parametrize('lower, available', [
    ('model.hidden_size=8', 10 << 20), ('train.targets_per_step=8', 32 << 20),
])
def test_less_memory_is_needed_with_the_lower_setting(finished, tmp_path, monkeypatch, lower, available):
    train = functools.partial(
        call, 'train', *TINY, f'--data_dir={finished}/log.csv', '--set=model.hidden_size=128',
        '--set=train.targets_per_step=512', '--set=train.max_epochs=1', folder=tmp_path,
    )
    monkeypatch.setattr(out_of_memory, 'available_bytes', lambda: available)
    refused(train(), MEMORY)
    works(train(f'--set={lower}'))


@pytest.mark.slow
@tries(DIVERGED, NAN_SCORES)
def test_a_run_that_diverged(root):
    saved = load_run(root / 'run')
    evaluator = Evaluator(saved.config, saved.dataset, saved.network, saved.mesh, 'test')
    broken = jax.tree.map(lambda leaf: leaf * np.nan, saved.params)
    with pytest.raises(UserError, match=NAN_SCORES):
        evaluator.ranker.metrics(broken, evaluator.examples)
    train = functools.partial(call, 'train', *TINY, '--restart', '--set=train.objective=prefix', folder=root)
    refused(train('--set=train.learning_rate=1e30'), DIVERGED)
    works(train('--set=train.learning_rate=1e-3'))
    works(call(*EVALUATE, folder=root))


# ---- the program and its surroundings


@tries('read it with the same --features')
def test_what_the_recommender_asks_for(root):
    recommender = Recommender.load(root / 'run')
    recommender.save(root / 'model', histories=False)
    alone = Recommender.load(root / 'model')
    with pytest.raises(UserError, match=re.escape('give histories=[[item, ...], ...] instead of users')):
        alone.recommend(users=[1])
    assert len(alone.recommend(histories=[[1, 2]], k=3)) == 3
    log = root / 'priced.csv'
    log.write_text(rows('user_id,item_id,timestamp,price', line='{u},{i},{t},{n}'))
    more = pl.DataFrame({'user_id': [0, 1], 'item_id': [1, 2], 'timestamp': [1_700_000_000] * 2, 'price': [1, 2]})
    priced, unpriced = (
        FrameSource(more, TableOptions(features=features)).read() for features in (('price',), ())
    )
    works(call('prepare', '--dataset=interactions', '--data_dir=priced.csv', '--features=price', '--output=priced',
               folder=root))
    dataset = open_dataset(root / 'priced')
    assert dataset is not None
    with pytest.raises(UserError, match='read it with the same --features'):
        extended(dataset, unpriced)
    assert extended(dataset, priced).num_interactions == 74


UNSHOWN = "stdout's encoding, {}, cannot show {}: set PYTHONIOENCODING=utf-8"
HELP, NO_FLAG = 'See {} --help', 'there is no flag --{}{}'
EVERY = 'unexpected argument {}: every setting is a --flag=value'


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'} | environment
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, encoding='utf-8')


@tries(UNSHOWN)
def test_an_id_that_the_terminal_cannot_show():
    program = 'from ssd4rec_jax.show.output import write_stdout; write_stdout("ж")'
    assert says(UNSHOWN, python('-c', program, PYTHONIOENCODING='latin-1').stderr)
    assert python('-c', program, PYTHONIOENCODING='utf-8').stdout == 'ж'


@tries(HELP, NO_FLAG, EVERY)
def test_the_help_that_a_wrong_flag_leads_to():
    done = python('-m', 'experiments.settings', '--datasett=kuairand')
    assert done.returncode == 2 and says(NO_FLAG, done.stderr) and says(HELP, done.stderr)
    found = re.search(r'See python (-m .*)', done.stderr)
    assert found is not None
    shown = python(*found[1].split())
    assert shown.returncode == 0 and '--dataset=' in shown.stdout
    done = python('-m', 'experiments.settings', 'dataset=kuairand')
    assert done.returncode == 1 and says(EVERY, done.stderr)
    assert python('-m', 'experiments.settings', '--dataset=kuairand').returncode == 0


GOLDEN = '--golden=FILE.npz must name a golden file, such as tests/golden/ssd4rec_2layer.npz'


@tries(GOLDEN)
def test_the_golden_file_that_is_named(x64):  # which the command sets, and the fixture sets back
    refused(call('parity', folder=ROOT), GOLDEN)
    works(call('parity', f'--golden={GOLDEN.split()[-1]}', folder=ROOT))


THREE_FILES = (
    'data.split=files needs a log in three files: name them with --train_file, --valid_file and --test_file, or the '
    'folder that holds them with --data_dir'
)


@tries(THREE_FILES)
def test_a_log_in_one_file_has_no_parts(tmp_path):
    _write(tmp_path, {**PARTS, 'log/log.csv': LOG})
    works(call('prepare', '--dataset=interactions', '--data_dir=log/log.csv', '--output=one', folder=tmp_path))
    dataset = open_dataset(tmp_path / 'one')
    assert dataset is not None
    with pytest.raises(UserError) as error:
        with_split(dataset, DataConfig(split='files'))
    assert says(THREE_FILES, str(error.value))
    works(call('prepare', '--dataset=interactions', '--data_dir=.', SPLIT, folder=tmp_path))


@pytest.mark.slow
@tries(' (by default; --workdir names another)')
def test_the_workdir_by_default(finished, tmp_path):
    said, flags = ' (by default; --workdir names another)', [flag for flag in TINY if not flag.startswith('--workdir')]
    train = functools.partial(call, 'train', *flags, f'--data_dir={finished}/log.csv', folder=tmp_path)
    assert says(said, works(train()).out) and (tmp_path / 'runs/interactions/result.json').exists()
    works(train('--workdir=another'), said)
    assert (tmp_path / 'another/result.json').exists()


EXTRAS = {  # message: the modules that are missing without the extra
    'this machine has an NVIDIA GPU but JAX runs on the CPU: pip install "ssd4rec-jax[gpu]"': ('jax_cuda13_plugin',),
    'this machine has a TPU but JAX runs on the CPU: pip install "ssd4rec-jax[tpu]"': ('libtpu',),
    'compiling for a TPU needs libtpu: pip install "ssd4rec-jax[tpu]"': ('libtpu',),
    "is compressed with zstd, which is read with pyarrow: pip install 'ssd4rec-jax[frames]', or decompress it first":
        ('pyarrow',),
    'a frame of {} needs it and pyarrow: pip install "ssd4rec-jax[frames]"': ('pandas', 'pyarrow'),
}
TESTED.update(EXTRAS)


@pytest.mark.parametrize('said', EXTRAS)
def test_the_extra_that_is_named_brings_the_module(said):
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extra = re.search(r'\[(\w+)\]', said)
    assert extra is not None
    brought = set()
    for requirement in project['optional-dependencies'][extra[1]]:
        name, _, more = re.fullmatch(r'([\w-]+)(\[(\w+)\])?.*', requirement).groups()
        brought.add(name)
        if more:  # an extra of another project
            brought |= {
                re.match(r'[\w-]+', line)[0] for line in importlib.metadata.requires(name)
                if f'extra == "{more}"' in line.replace("'", '"')
            }
    assert set(EXTRAS[said]) <= {name.replace('-', '_') for name in brought}


def test_without_an_extra_the_sentence_is_said_and_the_other_way_works(tmp_path, monkeypatch):
    import pyarrow
    with pyarrow.CompressedOutputStream(str(tmp_path / 'log.csv'), 'zstd') as stream:
        stream.write(LOG.encode())
    expected = works(call('prepare', *HERE, '--output=with', folder=tmp_path)).out
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'pyarrow', None)
        zstd = next(said for said in EXTRAS if 'zstd' in said)
        refused(call('prepare', *HERE, '--output=without', folder=tmp_path), zstd)
        _write(tmp_path, {'log.csv': LOG})
        decompressed = works(call('prepare', *HERE, '--output=without', folder=tmp_path)).out
    assert json.loads(decompressed)['users'] == json.loads(expected)['users']


# ---- the list

# Messages whose way out is gone in another test.
ELSEWHERE = {
    '--plug=MODULE imports a module that registers another':
        'tests/test_extending.py::test_a_network_a_loss_and_a_data_set_of_ones_own_are_trained_and_evaluated',
    'the network reads the feature {} and the prepared data has {}: name its column with --features={}':
        'tests/test_extending.py::test_a_network_reads_the_features_of_the_events',
    'works on a whole item table alone: train with --model_shards=1':
        'tests/test_extending.py::test_a_network_of_ones_own_trains_alike_on_a_table_split_over_devices',
    'set data.rows_per_step to a multiple of {}, or resume on a device count that divides it':
        'tests/train/test_trainer.py::test_rows_that_the_devices_cannot_share_are_refused',
    'go on with --set=train.max_epochs={} or more, and --adopt_config':
        'tests/faults/test_answers.py::test_a_finished_run_adopts_no_config_that_it_does_not_train_with',
    'kept as %s and computed again': 'tests/faults/test_answers.py::test_a_changed_result_is_computed_again',
    'the data of the run was no longer in {} and is prepared again: {}':
        'tests/faults/test_remedies.py::test_its_training_command_again_prepares_what_is_gone',
    'download of %s broke off (%s): trying again':
        'tests/data/test_download.py::test_an_interrupted_transfer_goes_on_where_it_broke_off',
    'the config packs epochs in another way: epoch {} starts anew':
        'tests/train/test_trainer.py::test_a_config_that_packs_in_another_way_starts_the_epoch_anew',
    'Ctrl-C again stops without saving':
        'tests/commands/test_train.py::test_the_first_signal_asks_and_a_second_ctrl_c_interrupts',
    'the same command goes on from it':
        'tests/commands/test_distributed.py::test_a_killed_process_ends_the_others_and_the_restart_goes_on',
    'Start all with the same command and data':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    'Check that process 0 was started on the host of --coordinator_address':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    '{} needs --distributed': 'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    'give all of --coordinator_address, --num_processes and --process_id':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    '--workdir has to lie on a file system of all hosts':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    '{} COMMAND --help shows the flags of a command.':
        'tests/commands/test_main.py::test_help_shows_own_flags_by_topic_in_80_columns',
    '{} has no command {}':
        'tests/commands/test_main.py::test_a_command_that_there_is_not_is_answered_with_the_nearest',
    'error: --{}={} is unknown: there are {}': 'tests/kernels/test_bench_ssd.py::test_bad_flags_are_named',
}
# Texts that name a command or a flag without a way out.
NO_WAY_OUT = {
    'python -m {}', 'for --dataset=interactions', 'Usage: {} COMMAND [--flag=value ...]',
    '--features takes numbers and texts',
    ' at --coordinator_address={}', 'did not all meet{} within --connect_seconds={}. {}',
    'The settings of --dataset={}{}.', 'histories cut to --tokens_per_row={}: training would not cut them',
    'error: --repeats={} must be at least 1', 'error: --json={} cannot be written: there is no such folder',
    'error: --topology={} is not one that libtpu knows',
    'warning: the data of the run is no longer in {} and cannot be prepared again ({})',
}


def test_every_message_that_names_a_way_out_has_a_test_that_goes_it():
    known = [*TESTED, *ELSEWHERE, *NO_WAY_OUT]
    found = dict(messages())
    untested = {at: text for at, text in found.items() if not any(said in text for said in known)}
    assert not untested, 'test each of these, in this file'
    for at in ELSEWHERE.values():
        file, _, name = at.partition('::')
        assert f'def {name}(' in (ROOT / file).read_text(), at
    gone = [said for said in (*ELSEWHERE, *NO_WAY_OUT) if not any(said in text for text in found.values())]
    assert not gone, 'no message says this any more'
