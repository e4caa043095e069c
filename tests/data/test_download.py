"""Downloads from a local HTTP server that can break off, ignore ranges, or send something else."""
import dataclasses
import gzip
import hashlib
import http.server
import io
import re
import socket
import threading
import zipfile

import numpy as np
import pytest

from ssd4rec_jax.data.download import download
from ssd4rec_jax.data.sources import OFFICIAL, find_source, official_set
from ssd4rec_jax.errors import DataError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.content, as server.behaviour says; notes each request's Range."""

    def do_GET(self):
        server = self.server
        wanted = self.headers.get('Range')
        server.ranges.append(wanted)
        if server.statuses:
            status = server.statuses.pop(0)
            if status != 200:
                return self.send_error(status)
        start = 0
        version = self.headers.get('If-Range', server.etag)
        if wanted and server.honours_range and version == server.etag:
            start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
            if start >= len(server.content):
                return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        headers = {'Content-Length': str(len(body)), 'ETag': server.etag}
        if start:
            headers['Content-Range'] = f'bytes {start}-{len(server.content) - 1}/{len(server.content)}'
        for name, value in {**headers, **server.headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        # Breaking off: the promised length does not come.
        self.wfile.write(body[:server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.content, server.honours_range, server.breaks, server.statuses, server.ranges = CONTENT, True, [], [], []
    server.etag, server.headers = '"one"', {}
    server.address = f'http://127.0.0.1:{server.server_port}/files/log.zip'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, target, **options):
    download(server.address, target, **{'md5': MD5, 'size': len(CONTENT), 'first_wait': 0.0, **options})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_with_progress(server, tmp_path):
    seen = []
    fetch(server, tmp_path / 'new' / 'log.zip', progress=lambda here, total: seen.append((here, total)))
    assert (tmp_path / 'new' / 'log.zip').read_bytes() == CONTENT
    assert names(tmp_path / 'new') == ['log.zip'] and server.ranges == [None]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)


def test_an_interrupted_transfer_goes_on_where_it_broke_off(server, tmp_path):
    server.breaks = [1_000_000, 500_000]
    fetch(server, tmp_path / 'log.zip')
    assert (tmp_path / 'log.zip').read_bytes() == CONTENT
    assert server.ranges == [None, 'bytes=1000000-', 'bytes=1500000-']


def test_what_arrived_is_kept_for_the_next_call(server, tmp_path):
    server.breaks = [1_000_000, 1_000]
    with pytest.raises(DataError, match='1001000 of 3000000 bytes arrived.*try again'):
        fetch(server, tmp_path / 'log.zip', attempts=2)
    assert names(tmp_path) == ['log.zip.part', 'log.zip.part.json']
    fetch(server, tmp_path / 'log.zip')
    assert server.ranges[-1] == 'bytes=1001000-'
    assert (tmp_path / 'log.zip').read_bytes() == CONTENT and names(tmp_path) == ['log.zip']


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.honours_range, server.breaks = False, [2_000_000]
    fetch(server, tmp_path / 'log.zip')
    assert server.ranges == [None, 'bytes=2000000-'] and (tmp_path / 'log.zip').read_bytes() == CONTENT


@pytest.mark.parametrize('known', [{}, {'size': 0}])
def test_a_part_that_is_already_whole_is_used(server, tmp_path, known):
    (tmp_path / 'log.zip.part').write_bytes(CONTENT)
    fetch(server, tmp_path / 'log.zip', **known)
    assert (tmp_path / 'log.zip').read_bytes() == CONTENT and names(tmp_path) == ['log.zip']


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / 'log.zip.part').write_bytes(CONTENT + b'more')
    fetch(server, tmp_path / 'log.zip')
    assert (tmp_path / 'log.zip').read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b'!'
    digest = hashlib.md5(server.content).hexdigest()
    with pytest.raises(DataError, match=f'not the official file .its md5 is {digest} instead of {MD5}. and was'):
        fetch(server, tmp_path / 'log.zip')
    assert names(tmp_path) == []


def test_a_wrong_size_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1]
    with pytest.raises(DataError, match='it has 2999999 bytes instead of 3000000'):
        fetch(server, tmp_path / 'log.zip', md5='')
    assert names(tmp_path) == []


def test_a_missing_file_is_not_tried_again(server, tmp_path):
    server.statuses = [404] * 9
    with pytest.raises(DataError, match=f'the server answers 404 Not Found.*get {server.address} elsewhere'):
        fetch(server, tmp_path / 'log.zip')
    assert len(server.ranges) == 1 and names(tmp_path) == []


def test_a_busy_server_is_tried_again(server, tmp_path):
    server.statuses = [503, 429, 200]
    fetch(server, tmp_path / 'log.zip')
    assert len(server.ranges) == 3 and (tmp_path / 'log.zip').read_bytes() == CONTENT


def test_offline_one_sentence_says_which_file_to_put_where(tmp_path):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))  # bound and not listening: connections are refused
        address = f'http://127.0.0.1:{unused.getsockname()[1]}/log.zip'
        with pytest.raises(DataError) as raised:
            download(address, tmp_path / 'log.zip', attempts=2, first_wait=0.0)
    assert 'the server cannot be reached: ' in str(raised.value)
    assert f'get {address} elsewhere and put it into {tmp_path}' in str(raised.value)
    assert names(tmp_path) == []


def test_a_disk_that_refuses_is_not_taken_for_the_network(server, tmp_path):
    (tmp_path / 'log.zip.part').mkdir()
    with pytest.raises(DataError, match='log.zip.part cannot be written'):
        fetch(server, tmp_path / 'log.zip', size=0)
    assert len(server.ranges) <= 1


ROWS = b''.join(b'A%d,B%d,5.0,13695%d\n' % (k, k % 7, k) for k in range(1000))
ROW_FORM = '[^,<>]+,[^,<>]+,[0-9.]+,[0-9]+'


def fetch_unverified(server, target, **options):
    """As of a data set for which no checksum is published."""
    download(server.address, target, **{'form': ROW_FORM, 'first_wait': 0.0, 'attempts': 2, **options})


def test_a_page_in_place_of_a_log_is_refused(server, tmp_path):
    server.content = b'<html>moved</html>\n\n'
    with pytest.raises(DataError, match="its first line is '<html>moved</html>'"):
        fetch_unverified(server, tmp_path / 'log.csv')
    assert names(tmp_path) == []
    server.content = ROWS
    fetch_unverified(server, tmp_path / 'log.csv')
    assert (tmp_path / 'log.csv').read_bytes() == ROWS and names(tmp_path) == ['log.csv']


@pytest.mark.parametrize('name', [
    name for name in [*OFFICIAL, 'amazon-2014-Books', 'amazon-2018-Books', 'amazon-2023-Books']
    if not official_set(name).md5
])
def test_every_data_set_without_a_checksum_has_a_form(server, tmp_path, monkeypatch, name):
    official = dataclasses.replace(official_set(name), address=server.address.replace(
        'log.zip', official_set(name).file_name
    ))
    monkeypatch.setattr('ssd4rec_jax.data.sources.official_set', lambda name: official)
    monkeypatch.chdir(tmp_path)
    for page in (b'<html>', b'a page,\nwithout tags'):
        server.content = page
        with pytest.raises(DataError, match='is not the official file'):
            find_source(name)
        assert names(tmp_path / 'data' / name) == []
    header = official.format.columns or (official.format.user, official.format.item, 'rating', official.format.time)
    first = 'A1,B2,4.0,1500000000' if official.format.columns else ','.join(header)
    server.content = packed(official, f'{first}\nA1,B2,4.0,1500000000\n'.encode())
    assert find_source(name).name == name and names(tmp_path / 'data' / name) == [official.file_name]
    damaged = server.content[:-12]
    if official.file_name.endswith(('.gz', '.zip')):  # whose own checksums tell
        (tmp_path / 'data' / name / official.file_name).unlink()
        server.content = damaged
        with pytest.raises(DataError, match='cut short or damaged'):
            find_source(name)


def packed(official, log):
    """The log in the form of the official file."""
    if official.file_name.endswith('.gz'):
        return gzip.compress(log)
    if official.file_name.endswith('.zip'):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as archive:
            archive.writestr(f'{official.folder}/{official.files[0]}', log)
        return out.getvalue()
    return log


def test_two_processes_fetch_a_file_once(server, tmp_path):
    server.content = ROWS
    server.breaks = [5000]
    both = [threading.Thread(target=fetch_unverified, args=(server, tmp_path / 'log.csv')) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert server.ranges == [None, 'bytes=5000-'] and (tmp_path / 'log.csv').read_bytes() == ROWS
    assert names(tmp_path) == ['log.csv']


@pytest.mark.parametrize('length, message', [
    ('', 'tells no length'), ('abc', "a length of 'abc'"), ('-5', "a length of '-5'"), ('9' * 30, 'a length of'),
])
def test_a_length_that_cannot_be_checked_is_refused(server, tmp_path, length, message):
    server.content, server.headers = ROWS, {'Content-Length': length}
    with pytest.raises(DataError, match=message):
        fetch_unverified(server, tmp_path / 'log.csv')
    assert not (tmp_path / 'log.csv').exists()


@pytest.mark.parametrize('etag', ['"two"', ''])
def test_a_part_of_another_version_is_not_continued(server, tmp_path, etag):
    server.content, server.breaks = ROWS, [5000]
    with pytest.raises(DataError, match='5000 of'):
        fetch_unverified(server, tmp_path / 'log.csv', attempts=1)
    server.content, server.etag = ROWS.replace(b'A', b'C'), etag
    fetch_unverified(server, tmp_path / 'log.csv')
    assert (tmp_path / 'log.csv').read_bytes() == ROWS.replace(b'A', b'C')


def test_a_part_of_the_same_version_is_continued(server, tmp_path):
    server.content, server.breaks = ROWS, [5000]
    fetch_unverified(server, tmp_path / 'log.csv')
    assert server.ranges == [None, 'bytes=5000-'] and (tmp_path / 'log.csv').read_bytes() == ROWS


def test_a_part_of_which_nothing_is_known_is_not_continued(server, tmp_path):
    (tmp_path / 'log.csv.part').write_bytes(b'x' * 5000)
    server.content = ROWS
    fetch_unverified(server, tmp_path / 'log.csv')
    assert server.ranges == [None] and (tmp_path / 'log.csv').read_bytes() == ROWS


@pytest.mark.parametrize('told', ['bytes 0-99/100', 'bytes 4000-14999/15000', 'nonsense', 'bytes 5000-5100/5101'])
def test_an_answer_that_goes_on_elsewhere_is_not_joined(server, tmp_path, told):
    server.content, server.breaks = ROWS, [5000]
    with pytest.raises(DataError, match='5000 of'):
        fetch_unverified(server, tmp_path / 'log.csv', attempts=1)
    server.headers = {'Content-Range': told}
    with pytest.raises(DataError, match='asked for the bytes from 5000 on'):
        fetch_unverified(server, tmp_path / 'log.csv', attempts=1)
    server.headers = {}
    fetch_unverified(server, tmp_path / 'log.csv')
    assert (tmp_path / 'log.csv').read_bytes() == ROWS
