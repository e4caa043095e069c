"""Ways out of what is wrong with a log: the message is provoked, what it says is done, and then it works."""
import dataclasses
import functools
import gzip
import http.server
import io
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ssd4rec_jax.data import download, sources
from tests.faults.inside import call
from tests.faults.remedies import HERE, LOG, PARTS, SPLIT, TESTED, refused, rows, says, tries, works, write_files


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
    write_files(tmp_path, case.files)
    prepare = functools.partial(call, 'prepare', folder=tmp_path)
    wrong = prepare('--output=wrong', *case.wrong)
    if case.warns:
        assert wrong.code == 0 and says(case.said, wrong.err), wrong
    else:
        refused(wrong, case.said)
    write_files(tmp_path, case.mended)
    done = works(prepare('--output=right', *case.right), case.said)
    assert json.loads(done.out)['users'] in (6, 12, 13)


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
    write_files(tmp_path, {'data/.keep': '', 'data/amazon-beauty/ratings_Beauty.csv': ''})
    (tmp_path / 'data/amazon-beauty/ratings_Beauty.csv').write_text(rows(line='u{u},i{i},5.0,{t}', users=9))
    done = prepare()
    refused(done, NOT_OFFICIAL)
    works(prepare('--data_dir=data/amazon-beauty'))
    (tmp_path / done.err.split()[1]).unlink()
    assert json.loads(works(prepare()).out)['users'] == 12
