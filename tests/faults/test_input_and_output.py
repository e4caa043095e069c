"""What comes in is refused in a sentence, and what goes out forges nothing: the commands called inside this process."""
import tarfile
import zipfile

import numpy as np
import pytest

from ssd4rec_jax.data.dataset import open_dataset
from ssd4rec_jax.data.packing import choose_step_shape
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.show import output
from tests.faults.inside import EVALUATE, TINY, call, refused, write_log

# ---- tracebacks from input


@pytest.mark.parametrize('kind', [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_tar_member_that_is_no_file(tmp_path, kind):
    with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as archive:
        odd = tarfile.TarInfo('folder/log.csv')
        odd.type, odd.linkname = kind, 'elsewhere'
        archive.addfile(odd)
    raw = RawFile(tmp_path / 'a.tar.gz', 'folder/log.csv')
    with pytest.raises(DataError, match='holds no folder/log.csv'), raw.open():
        pass


@pytest.mark.parametrize('offset, value, message', [(6, b'\x01', 'password|encrypted'), (8, b'\x63', 'compression')])
def test_a_zip_that_python_cannot_unpack(tmp_path, offset, value, message):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('ml/log.csv', 'a,b\n')
    content = bytearray((tmp_path / 'a.zip').read_bytes())
    central = content.index(b'PK\x01\x02')
    content[offset:offset + 1] = value
    content[central + offset + 2:central + offset + 3] = value
    (tmp_path / 'a.zip').write_bytes(content)
    with pytest.raises(DataError, match=message), RawFile(tmp_path / 'a.zip', 'ml/log.csv').open():
        pass


@pytest.mark.parametrize('odd', [
    '{"sha256": 5}', '[]', '5', '{"format_version": 1, "sha256": {}}', '[' * 100_000, '\xff',
])
def test_an_odd_description_of_prepared_data_is_damage(root, odd):
    file, = root.glob('data/interactions/prepared-*/dataset.json')
    file.write_text(odd, encoding='latin-1')
    assert open_dataset(file.parent) is None
    description = '{"format_version": 2, "name": "x", "fingerprint": "f", "sha256": 5}'
    file.write_text(description)
    assert open_dataset(file.parent) is None


@pytest.mark.parametrize('odd', [
    '[]', '5', 'null', '{}', '{"model": [], "data": {}, "train": {}, "dataset": "x"}', '[' * 100_000,
    '{"dataset": "x", "model": {"beta": 1e999}, "data": {}, "train": {}}',
    '{"dataset": "x", "model": {"name": {}}, "data": {}, "train": {}}',
    '{"dataset": "x", "model": {}, "data": {}, "train": {"loss": []}}',
    '{"dataset": "x", "model": {}, "data": {}, "train": {}, "prepared": 5}',
])
def test_an_odd_config_is_refused_by_name(from_checkpoints, odd):
    (from_checkpoints / 'run/config.json').write_text(odd)
    refused(call(*EVALUATE, folder=from_checkpoints), 'config.json')
    refused(call('train', *TINY, folder=from_checkpoints), 'config.json')


# ---- output


@pytest.mark.slow
def test_ids_forge_no_lines_and_are_no_formulas(tmp_path):
    odd = [
        'a\tb', 'x\n3\t1\tforged\t9.9', '\x1b[2Jred', '=HYPERLINK("http://a")', '-5', '@cmd', 'back\\slash', '+1.5',
        '-x',
    ]
    shown = [output.shown_id(text) for text in odd]
    assert shown == [
        'a\\tb', 'x\\n3\\t1\\tforged\\t9.9', '\\x1b[2Jred', '\\x3dHYPERLINK("http://a")', '-5', '\\x40cmd',
        'back\\\\slash', '+1.5', '\\x2dx',
    ]
    rng = np.random.default_rng(0)
    lines = ['user_id,item_id,timestamp']
    for user in range(30):
        for t, item in enumerate(rng.integers(0, len(odd) - 2, 8)):
            name = odd[item].replace('"', '""')
            lines.append(f'u{user},"{name}",{1_600_000_000 + t}')
    (tmp_path / 'log.csv').write_text('\n'.join(lines) + '\n')
    assert call('train', *TINY, '--set=train.max_epochs=1', folder=tmp_path).code == 0
    done = call('recommend', '--workdir=run', '--users=u1', '--k=20', folder=tmp_path)
    assert done.code == 0 and '\x1b' not in done.out
    rows = [line.split('\t') for line in done.out.splitlines()]
    assert all(len(row) >= 4 and row[0] == 'u1' for row in rows) and {row[2] for row in rows} <= set(shown)
    done = call('recommend', '--workdir=run', '--history=none\x1b[2J', folder=tmp_path)
    assert done.code and '\x1b' not in done.err


def test_a_note_of_prepare_quotes_no_raw_header(tmp_path):
    header = 'user_id:token\t\x1b[2Jitem_id_list:token_seq\t\x1b[2Jitem_id:token'
    lines = [f'{user}\t1 2 3\t{user % 3}' for user in range(9)]
    (tmp_path / 'log.csv').write_text('\n'.join([header, *lines]) + '\n')
    done = call(
        'prepare', '--dataset=interactions', '--data_dir=log.csv', '--item_column=\x1b[2Jitem_id',
        '--set=data.min_interactions=1', folder=tmp_path,
    )
    assert done.code == 0 and 'each row is a history' in done.err and '\x1b' not in done.err + done.out


def test_an_error_is_one_line_whatever_it_quotes(capsys):
    output.complain('error: no such user: a\nerror: forged \x1b[2J\r\u2028')
    assert capsys.readouterr().err == 'error: no such user: a\\nerror: forged \\x1b[2J\\r\\u2028\n'


def test_a_link_is_followed_and_not_replaced(tmp_path):
    write_log(tmp_path / 'log.csv')
    write_log(tmp_path / 'other.csv', seed=1)
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / 'disk/out')
    for log in ('log.csv', 'log.csv', 'other.csv'):
        assert call('prepare', '--dataset=interactions', f'--data_dir={log}', '--output=out', folder=tmp_path).code == 0
        assert (tmp_path / 'out').is_symlink() and (tmp_path / 'disk/out/dataset.json').exists()


def test_more_rows_than_histories_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match='rows_per_step=100000000 is more than the 240 histories'):
        choose_step_shape(np.ones(240, np.int64), targets_per_step=64, tokens_per_row=64, rows=100_000_000)
    write_log(tmp_path / 'log.csv')
    refused(call('train', *TINY, '--set=data.rows_per_step=100000000', folder=tmp_path), 'data.rows_per_step=100000000')
