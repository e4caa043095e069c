"""metrics.jsonl: appending, a torn last line, rewriting on resume."""
import json

import pytest

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.run.metrics_log import MetricsLog

RECORDS = [{'kind': 'train', 'step': step, 'loss': 1 / step} for step in (1, 2, 3)]


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path / 'metrics.jsonl')
    for record in RECORDS:
        log.write(record)
    return log


def test_one_object_a_line_readable_at_once(log):
    lines = log.path.read_text().split('\n')
    assert lines[-1] == '' and [json.loads(line) for line in lines[:-1]] == RECORDS
    assert log.read() == RECORDS


def test_a_second_log_on_the_same_path_appends(log):
    MetricsLog(log.path).write({'step': 4})
    assert [r['step'] for r in log.read()] == [1, 2, 3, 4]


def test_text_with_line_breaks_stays_one_record(log):
    record = {'step': 4, 'note': 'a\nb\u2028c\x85d'}
    log.write(record)
    assert log.read() == [*RECORDS, record]


def test_no_file_is_no_record(tmp_path):
    log = MetricsLog(tmp_path / 'metrics.jsonl')
    assert log.read() == []
    log.keep(lambda record: True)
    assert not log.path.exists()


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_json_has_no_nan(log, bad):
    with pytest.raises(ValueError, match='JSON'):
        log.write({'step': 4, 'loss': bad})
    assert log.read() == RECORDS, 'nothing of the record was written'


def test_keep_drops_what_a_resumed_run_writes_again(log):
    log.keep(lambda record: record['step'] <= 2)
    assert log.read() == RECORDS[:2]
    log.write(RECORDS[2])
    assert log.read() == RECORDS
    assert [p.name for p in log.path.parent.iterdir()] == ['metrics.jsonl']


@pytest.mark.parametrize('cut', [1, 5])
def test_a_torn_last_line_is_dropped(log, cut):
    """Also where only its line break is missing: the next record would be glued to it."""
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    assert log.read() == RECORDS[:2]
    log.keep(lambda record: True)
    log.write(RECORDS[2])
    assert log.read() == RECORDS


def test_a_damaged_line_is_warned_of_and_left_out(log, caplog):
    first, second, third, end = log.path.read_text().split('\n')
    log.path.write_text('\n'.join([first, second.replace('0.5', 'NaN'), third, end]))
    with caplog.at_level('WARNING'):
        assert log.read() == [RECORDS[0], RECORDS[2]]
    assert 'metrics.jsonl:2 is not a record' in caplog.text and '1 damaged lines are left out' in caplog.text


def test_a_rewrite_that_fails_leaves_the_old_file(log, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('ssd4rec_jax.files.os.replace', full)
    with pytest.raises(UserError, match=f'{log.path} cannot be written: .*No space left'):
        log.keep(lambda record: False)
    assert log.read() == RECORDS
    assert [p.name for p in log.path.parent.iterdir()] == ['metrics.jsonl']


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='absent/metrics.jsonl cannot be written'):
        MetricsLog(tmp_path / 'absent' / 'metrics.jsonl').write({'step': 1})
