"""TensorBoard's events, read by their format: the records of metrics.jsonl, each step once."""
import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog
from ssd4rec_jax.show.tensorboard import TensorBoard

TRAIN = {'kind': 'train', 'epoch': 1, 'loss': 2.5, 'targets/s': 100.0}
VALID = {'kind': 'valid', 'epoch': 1, 'NDCG@10': 0.25, 'best': True, 'ssd_implementation': 'xla'}


def events(folder: RunFolder) -> list[Event]:
    """All events of the one file there: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    (file,) = folder.events.iterdir()
    raw, at, found = file.read_bytes(), 0, []
    while at < len(raw):
        (length,) = struct.unpack_from('<Q', raw, at)
        found.append(Event.FromString(raw[at + 12:at + 12 + length]))
        at += 16 + length
    return found


def figures(folder: RunFolder) -> list[tuple[str, int, float]]:
    return [(value.tag, e.step, value.simple_value) for e in events(folder) for value in e.summary.value]


def session(folder: RunFolder, *records: dict) -> None:
    board, log = TensorBoard(folder), MetricsLog(folder.metrics)
    for record in records:
        log.write(record)
        board.logged(record)
    board.close()


def test_the_events_of_a_run_that_goes_on_are_those_of_its_log(tmp_path):
    folder = RunFolder(tmp_path)
    session(folder, {**TRAIN, 'step': 3, 'train_seconds': 1.0}, {**VALID, 'step': 5, 'train_seconds': 2.0},
            {**TRAIN, 'step': 9, 'train_seconds': 4.0})
    assert figures(folder) == [
        ('train/loss', 3, 2.5), ('train/targets_per_second', 3, 100.0), ('valid/NDCG_10', 5, 0.25),
        ('train/loss', 9, 2.5), ('train/targets_per_second', 9, 100.0),
    ]
    MetricsLog(folder.metrics).keep(lambda record: record['step'] <= 5)  # as a run does that goes on from a checkpoint
    session(folder, {**TRAIN, 'step': 9, 'loss': 1.5, 'train_seconds': 5.0})
    assert [(tag, step, value) for tag, step, value in figures(folder) if tag == 'train/loss'] == [
        ('train/loss', 3, 2.5), ('train/loss', 9, 1.5),
    ]
    # Relative time is the time of training, and a TensorBoard that looks on forgets what it has read.
    times = {e.step: e.wall_time for e in events(folder) if e.summary.value}
    assert times[9] - times[3] == pytest.approx(4.0, abs=1e-3)
    assert any(e.session_log.status == 1 and e.step == 0 for e in events(folder))


def test_without_the_package_a_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    with pytest.raises(UserError, match=r'ssd4rec-jax\[plots\]'):
        TensorBoard(RunFolder(tmp_path))
