"""Time and peak memory of preparing a log in KuaiRand-27K's form, and the memory that the true size would need."""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from experiments.published import LOGS
from ssd4rec_jax.data.sources import OFFICIAL

DATASET = 'kuairand-27k'
COLUMNS = (
    'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,'
    'play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab'
).split(',')
AT_ONCE = 1_000_000
FIRST_DAY_MS, DAY_MS = 1_649_347_200_000, 86_400_000


def write_log(folder: Path, rows: int, seed: int = 0) -> int:
    """Writes a random log with KuaiRand-27K's files and columns into a folder and returns its size in bytes.

    It has as many rows per user and per item as KuaiRand-27K, and the rows of all users are mixed.
    """
    rng = np.random.default_rng(seed)
    true = LOGS[DATASET]
    users, items = (max(10, rows * n // true.interactions) for n in (true.users, true.items))
    files, size = OFFICIAL[DATASET].files, 0
    for number, name in enumerate(files):
        left = rows // len(files) + (number < rows % len(files))
        with open(folder / name, 'wb') as out:
            while left:
                n = min(left, AT_ONCE)
                times = FIRST_DAY_MS + number * 7 * DAY_MS + rng.integers(0, 7 * DAY_MS, n)
                columns = {
                    'user_id': rng.integers(0, users, n), 'video_id': (items * rng.random(n) ** 2).astype(np.int64),
                    'date': np.full(n, 20220409 + 7 * number), 'hourmin': times // 60_000 % 60, 'time_ms': times,
                    'play_time_ms': rng.integers(0, 60_000, n), 'duration_ms': rng.integers(5_000, 120_000, n),
                }
                flags = {column: rng.integers(0, 2, n) for column in COLUMNS if column not in columns}
                frame = pl.DataFrame({**columns, **flags}).select(COLUMNS)
                frame.write_csv(out, include_header=out.tell() == 0)
                left -= n
        size += (folder / name).stat().st_size
    return size


def measure_preparation(rows: int = 20_000_000) -> dict:
    """The figures of the prepare command for logs of `rows` rows and of half as many, each in a process of its own.

    planned_bytes is the peak memory for the rows of KuaiRand-27K, extrapolated linearly from both peaks.
    """
    logs = [_prepare(n) for n in (rows // 2, rows)]
    a_row = (logs[1]['peak_bytes'] - logs[0]['peak_bytes']) / (logs[1]['rows'] - logs[0]['rows'])
    true = LOGS[DATASET].interactions
    return {
        'logs': logs, 'bytes_a_row': a_row, 'true_rows': true,
        'planned_bytes': logs[1]['peak_bytes'] + a_row * (true - logs[1]['rows']),
    }


def _prepare(rows: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_log(folder, rows)
        command = [
            sys.executable, '-m', 'experiments.prepare', f'--dataset={DATASET}', f'--data_dir={folder}',
            f'--output={folder / "prepared"}',
        ]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return {
        'rows': rows, 'file_bytes': size, 'seconds': seconds, 'seconds_per_million_rows': 1e6 * seconds / rows,
        'peak_bytes': usage.ru_maxrss * 1024,
    }
