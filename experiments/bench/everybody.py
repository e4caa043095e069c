"""Everybody's best items of a large catalogue by `recommend --users=all`, the item table split over devices."""
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.bench.catalogue import USERS, generated
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.run.model_folder import save_model

ITEMS, K = 5_000_000, 10
RUNS = (1, 4), (2, 2)  # processes, and simulated CPU devices of each; all devices share the table


def measure_everybody(config: RunConfig) -> list[dict[str, Any]]:
    """The figures of the whole command for each of RUNS, with the catalogue and the log of the benchmark `catalogue`.

    The parameters are not trained, which the cost does not depend on; seen items are left out. peak_bytes is what the
    kernel counted of each process, files that it mapped included, and cpu_seconds what all of them computed.
    same_items: the share of the lists' places whose item is that of the first run; scores differ by at most
    largest_difference, relative to the largest score.
    """
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / 'model'
        # In a process of its own, whose memory is free afterwards.
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
            process.submit(_save, config, model).result()
        expected: pl.DataFrame | None = None
        for processes, devices in RUNS:
            figures, found = _recommend(model, Path(folder) / f'{processes}x{devices}', processes, devices)
            expected = found if expected is None else expected
            ours, theirs = (frame['score'].to_numpy() for frame in (found, expected))
            measured.append({
                'items': ITEMS, 'users': USERS, 'k': K, **figures,
                'same_items': float(np.mean(found['item'].to_numpy() == expected['item'].to_numpy())),
                'largest_difference': float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
            })
    return measured


def _save(config: RunConfig, path: Path) -> None:
    dataset = generated(ITEMS)
    _, params = init_network(config.model, ITEMS, config.train.seed)
    save_model(path, config, dataset, params, step=1, best_epoch=1)


def _recommend(model: Path, output: Path, processes: int, devices: int) -> tuple[dict[str, Any], pl.DataFrame]:
    """(figures, the rows of all files) of the command run by some processes."""
    command = [
        sys.executable, '-m', 'experiments.recommend', f'--workdir={model}', '--users=all', f'--k={K}',
        '--exclude_seen', f'--model_shards={processes * devices}',
    ]
    if processes == 1:
        output = output.with_suffix('.parquet')
        each: list[list[str]] = [[]]
    else:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        meet = '--distributed', f'--coordinator_address=127.0.0.1:{port}', f'--num_processes={processes}'
        each = [[*meet, f'--process_id={number}'] for number in range(processes)]
    env = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    started = time.monotonic()
    running = [subprocess.Popen([*command, f'--output={output}', *more], env=env) for more in each]
    ended = [os.wait4(process.pid, 0) for process in running]
    seconds = time.monotonic() - started
    for _, status, _ in ended:
        if status:
            raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    files = [output] if output.is_file() else sorted(output.glob('part-*.parquet'))
    return {
        'processes': processes, 'devices_of_each': devices, 'seconds': seconds,
        'cpu_seconds': sum(usage.ru_utime + usage.ru_stime for _, _, usage in ended),
        'peak_bytes': [usage.ru_maxrss * 1024 for _, _, usage in ended],
    }, pl.concat(map(pl.read_parquet, files))
