"""The prepared data set on disk: round trip, reuse, damage, refusal, and a disk that is full."""
import dataclasses
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, save_dataset
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.prepare import fingerprint, prepare
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.errors import DataError

DATASET = SequenceDataset(
    name='tiny', items=np.array([1, 2, 2, 1], np.int32), offsets=np.array([0, 1, 4]),
    user_ids=TextIds.of(['ann', 'bö']), item_ids=np.array([30, 0]), fingerprint='f' * 64,
    times=np.array([5, 1, 2, 3]), time_unit='s', report={'rows': 4},
)
FILES = ['dataset.json', 'item_ids.npy', 'items.npy', 'offsets.npy', 'times.npy', 'user_ids.npy']
TEXT_FILES = sorted({*FILES, 'user_ids.bytes.npy', 'user_ids.offsets.npy'} - {'user_ids.npy'})


@dataclasses.dataclass
class CountedSource:
    """A source that counts how often it is read."""

    content: str = 'first'
    reads: int = 0
    name = 'counted'

    def content_hash(self):
        return self.content

    def read(self):
        self.reads += 1
        rows = np.arange(60)
        return Interactions(rows % 4, rows % 3, rows[::-1].copy(), 'counted')


def assert_same(a: SequenceDataset, b: SequenceDataset) -> None:
    for field in dataclasses.fields(SequenceDataset):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and one.tolist() == other.tolist(), field.name
        elif isinstance(one, TextIds):
            assert one.tolist() == other.tolist(), field.name
        else:
            assert one == other, field.name


def test_round_trip_is_memory_mapped(tmp_path):
    save_dataset(DATASET, tmp_path / 'new' / 'out')
    opened = open_dataset(tmp_path / 'new' / 'out')
    assert_same(opened, DATASET)
    assert isinstance(opened.items, np.memmap) and not opened.items.flags.writeable
    assert (opened.num_users, opened.num_items, opened.num_interactions) == (2, 2, 4)
    assert opened.lengths.tolist() == [1, 3]
    assert os.listdir(tmp_path / 'new') == ['out']
    assert sorted(os.listdir(tmp_path / 'new' / 'out')) == TEXT_FILES


def test_prepared_once_and_reused(tmp_path):
    source = CountedSource()
    first, path = prepare(source, DataConfig(), tmp_path / 'out')
    again, same_path = prepare(source, DataConfig(mask_ratio=0.7), tmp_path / 'out')  # masking shapes no array
    assert source.reads == 1 and path == same_path == tmp_path / 'out'
    assert_same(first, again)


@pytest.mark.parametrize('source, config', [
    (CountedSource('second'), DataConfig()),
    (CountedSource(), DataConfig(timestamp_precision='float32')),
    (CountedSource(), DataConfig(min_interactions=6)),
])
def test_rebuilt_and_said_aloud_when_source_or_settings_differ(tmp_path, caplog, source, config):
    old, _ = prepare(CountedSource(), DataConfig(), tmp_path / 'out')
    source = dataclasses.replace(source, reads=0)
    new, _ = prepare(source, config, tmp_path / 'out')
    assert source.reads == 1 and new.fingerprint == fingerprint(source, config) != old.fingerprint
    assert 'rebuilt' in caplog.text
    assert sorted(os.listdir(tmp_path)) == ['out']


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('damage', ['missing', 'truncated', 'flipped'])
def test_damage_is_rebuilt_with_a_warning(tmp_path, caplog, file, damage):
    source = CountedSource()
    expected = prepare(CountedSource(), DataConfig(), tmp_path / 'sound')[0]
    prepare(source, DataConfig(), tmp_path / 'out')
    path = tmp_path / 'out' / file
    data = bytearray(path.read_bytes())
    data[-2 if file.endswith('npy') else 10] ^= 4
    path.unlink() if damage == 'missing' else path.write_bytes(data if damage == 'flipped' else data[:-3])
    assert_same(prepare(source, DataConfig(), tmp_path / 'out')[0], expected)
    assert source.reads == 2 and 'rebuilt' in caplog.text


def test_the_default_folder_lies_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset, path = prepare(CountedSource(), DataConfig())
    assert path == tmp_path / 'data' / 'counted' / f'prepared-{dataset.fingerprint[:12]}'
    assert open_dataset(path) is not None


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    prepare(CountedSource(), DataConfig(), tmp_path / 'out')
    (tmp_path / 'out' / 'thesis.tex').write_text('years of work')
    before = sorted(os.listdir(tmp_path / 'out'))
    source = CountedSource('second')
    with pytest.raises(DataError, match='holds thesis.tex, which is not part of a prepared data set'):
        prepare(source, DataConfig(), tmp_path / 'out')
    assert sorted(os.listdir(tmp_path / 'out')) == before and source.reads == 0


def test_saving_over_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'thesis.tex').write_text('years of work')
    with pytest.raises(DataError, match='holds thesis.tex'):
        save_dataset(DATASET, tmp_path / 'out')
    assert (tmp_path / 'out' / 'thesis.tex').read_text() == 'years of work' and os.listdir(tmp_path) == ['out']


def test_a_file_in_the_place_of_the_folder_is_never_replaced(tmp_path):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(DataError, match='not part of a prepared data set'):
        prepare(CountedSource(), DataConfig(), tmp_path / 'out')
    assert (tmp_path / 'out').read_text() == 'mine'


def test_an_error_in_the_source_leaves_nothing(tmp_path):
    class Bad(CountedSource):
        def read(self):
            raise DataError('bad row')

    with pytest.raises(DataError, match='bad row'):
        prepare(Bad(), DataConfig(), tmp_path / 'deep' / 'out')
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    dead = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'], capture_output=True, text=True)
    for pid in (int(dead.stdout), os.getppid()):
        (tmp_path / f'.out.partial-{pid}').mkdir()
    save_dataset(DATASET, tmp_path / 'out')
    assert sorted(os.listdir(tmp_path)) == [f'.out.partial-{os.getppid()}', 'out']


def test_what_another_process_prepared_meanwhile_is_kept(tmp_path):
    """Moving it away and putting ours there would take it from the process that is about to open it."""
    class Overtaken(CountedSource):
        def read(self):
            if not self.reads:
                prepare(dataclasses.replace(self, reads=1), DataConfig(), tmp_path / 'out')
                self.inode = (tmp_path / 'out').stat().st_ino
            return super().read()

    source = Overtaken()
    dataset, _ = prepare(source, DataConfig(), tmp_path / 'out')
    assert_same(dataset, prepare(CountedSource(), DataConfig(), tmp_path / 'alone')[0])
    assert (tmp_path / 'out').stat().st_ino == source.inode and sorted(os.listdir(tmp_path)) == ['alone', 'out']


FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from ssd4rec_jax.data.dataset import SequenceDataset, save_dataset
from ssd4rec_jax.errors import DataError
items = np.ones(100_000, np.int32)
dataset = SequenceDataset('big', items, np.array([0, 100_000]), np.array([1]), np.array([1]), 'f')
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # the kernel refuses to write on
try:
    save_dataset(dataset, Path(sys.argv[1]))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize('older', [False, True])
def test_a_full_disk_leaves_what_was_there_and_no_more(tmp_path, older):
    if older:
        save_dataset(DATASET, tmp_path / 'out')
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(FULL_DISK), tmp_path / 'out'], capture_output=True, text=True, check=True
    )
    assert f'{tmp_path / "out"}: the prepared data set cannot be written' in done.stdout and 'MiB free' in done.stdout
    assert os.listdir(tmp_path) == (['out'] if older else [])
    if older:
        assert_same(open_dataset(tmp_path / 'out'), DATASET)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot be written'):
        save_dataset(DATASET, tmp_path / 'file' / 'out')
