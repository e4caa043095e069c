"""The log of events: what was acknowledged is there again, whatever ended the process."""
import gzip
import os
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.serve import event_log
from ssd4rec_jax.serve.event_log import Event, EventLog

EVENTS = [Event(f'u{n % 5}', f'item é {n}', 1.7e9 + n / 4) for n in range(20)]


def reopened(folder, **more):
    """What a new process finds."""
    log = EventLog(folder, **more)
    found = log.take()
    log.close()
    return found


def written(folder, events=EVENTS, **more):
    log = EventLog(folder, **more)
    for event in events:
        log.append([event])
    log.close()


def test_events_are_there_again_over_several_processes_and_files(tmp_path):
    written(tmp_path, EVENTS[:12], segment_bytes=300)
    assert len(list(tmp_path.glob('*.jsonl.gz'))) == 2 and len(list(tmp_path.glob('*.jsonl'))) == 1
    assert reopened(tmp_path) == EVENTS[:12]
    assert not list(tmp_path.glob('*.jsonl'))  # what a process left is compressed by the next one
    written(tmp_path, EVENTS[12:])
    assert reopened(tmp_path) == EVENTS
    assert reopened(tmp_path) == EVENTS


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), garbage=st.binary(max_size=40))
def test_a_torn_tail_is_cut_and_said(tmp_path_factory, cut, garbage):
    folder = tmp_path_factory.mktemp('torn')
    written(folder, EVENTS[:6])
    (file,) = folder.glob('*.jsonl')
    lines = file.read_bytes().splitlines(keepends=True)
    left = b''.join(lines)[:-cut or None] + garbage
    file.write_bytes(left)
    whole = max(n for n in range(7) if left.startswith(b''.join(lines[:n])))
    tail = left[len(b''.join(lines[:whole])):]
    with mock.patch.object(event_log.logging, 'warning') as warning:
        assert reopened(folder) == EVENTS[:whole]
        assert warning.call_count == bool(tail)
        if tail:
            (moved,) = folder.glob('*.cut')
            assert moved.read_bytes() == tail
        assert reopened(folder) == EVENTS[:whole]
        assert warning.call_count == bool(tail)


def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path):
    written(tmp_path, EVENTS[:5])
    (file,) = tmp_path.glob('*.jsonl')
    text = file.read_bytes()
    file.write_bytes(text.replace(b'"u1"', b'"u9"'))
    with pytest.raises(UserError, match=rf'{file}:2 is damaged \(its checksum differs\)'):
        EventLog(tmp_path)
    file.write_bytes(text)
    assert reopened(tmp_path) == EVENTS[:5]
    (packed,) = tmp_path.glob('*.gz')
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=f'{packed} cannot be read'):
        EventLog(tmp_path)
    packed.write_bytes(gzip.compress(text[:-3]))
    with pytest.raises(UserError, match='its last line is incomplete'):
        EventLog(tmp_path)


def test_one_process_at_a_time(tmp_path):
    log = EventLog(tmp_path)
    with pytest.raises(UserError, match='in use by another server'):
        EventLog(tmp_path)
    log.close()
    EventLog(tmp_path).close()


def test_a_compression_that_was_killed_loses_and_doubles_nothing(tmp_path, monkeypatch):
    written(tmp_path, EVENTS[:4])
    monkeypatch.setattr(event_log.Path, 'unlink', lambda *_, **__: os.kill)  # killed before the plain file is removed
    assert reopened(tmp_path) == EVENTS[:4]
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    assert reopened(tmp_path) == EVENTS[:4]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    log.append(EVENTS[:2])
    written_bytes = os.write

    def half_then_full(file, data):
        if len(data) < 20:
            raise OSError(28, 'No space left on device')
        return written_bytes(file, data[:len(data) - 10])

    monkeypatch.setattr(os, 'write', half_then_full)
    with pytest.raises(UserError, match='events cannot be kept .*No space left'):
        log.append([EVENTS[2]])
    monkeypatch.undo()
    log.append([EVENTS[3]])
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(5, 'Input/output error')))
    with pytest.raises(UserError, match='Input/output error'):
        log.append([EVENTS[4]])
    monkeypatch.undo()
    with pytest.raises(UserError, match='mend the disk and start anew'):  # nobody knows what it holds
        log.append([EVENTS[4]])
    log.close()
    assert reopened(tmp_path)[:3] == [*EVENTS[:2], EVENTS[3]]


def test_the_log_is_a_log_to_train_on(tmp_path):
    folder = tmp_path / 'events'
    events = [Event(f'u{u}', f'i{(u + t) % 6}', 1.7e9 + t) for u in range(12) for t in range(7)]
    written(folder, events, segment_bytes=900)
    source = find_source('interactions', folder / '*.jsonl*')
    dataset, _ = prepare(source, DataConfig(min_interactions=1), tmp_path / 'prepared')
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (12, 6, 84)
    assert dataset.times[:3].tolist() == [1_700_000_000, 1_700_000_001, 1_700_000_002] and dataset.time_unit == 's'
