"""Processes of this machine: their environment, their state, and several as one run, which talk over loopback."""
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.patient import SECONDS

ROOT = Path(__file__).parents[1]


def on_one_device(**more: str) -> dict[str, str]:
    """The environment of a process that finds this checkout, and one simulated device: eight take twice the time."""
    flags = os.environ.get('XLA_FLAGS', '').replace('_device_count=8', '_device_count=1')
    return os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | more


def state(process: int | str) -> str:
    """The letter of a process's state as Linux shows it, such as T where it is stopped; Z where it has ended."""
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return 'Z'


_KEPT: list[socket.socket] = []


def kept_port() -> int:
    """A port that nobody else gets: bound and not listening, it is left to process 0, whose gRPC shares ports."""
    _KEPT.append(socket.socket())
    _KEPT[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _KEPT[-1].bind(('127.0.0.1', 0))
    return _KEPT[-1].getsockname()[1]


def start(
    count: int, workdir: Path, *flags: str, devices: int, cwd: Path, of_last: list[str] = (),
    program: tuple[str, ...] = ('-m', 'tests.patient', 'experiments.train'),
) -> list[subprocess.Popen]:
    """Starts `count` processes of `ssd4rec_jax.commands.train`; a single one runs without --distributed.

    devices: the number of simulated CPU devices of each process. of_last: flags that only the last process gets.
    program: Python's arguments for another program with the same flags; tests.patient gives a module time.
    """
    port = kept_port()

    def one(more: list[str]) -> subprocess.Popen:
        env = os.environ | {
            'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={devices}',
        }
        command = [sys.executable, *program, f'--workdir={workdir}', *flags, *more]
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    if count == 1:
        return [one([])]
    meet = [
        '--distributed', f'--coordinator_address=127.0.0.1:{port}', f'--num_processes={count}',
        f'--connect_seconds={SECONDS}',
    ]
    each = [[*meet, f'--process_id={number}'] for number in range(count)]
    each[-1] += of_last
    return [one(more) for more in each]


def finished(processes: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """The outputs and exit codes of all processes once they have ended; no process is left running."""
    try:
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]
