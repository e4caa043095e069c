"""Two processes of one command share a study, and one that is killed leaves its cell to the other."""
import json
import signal
import subprocess
import sys

import pytest

from tests.processes import on_one_device, state
from tests.tiny import tiny_dataset
from tests.waiting import until

FILE = '''
[mine]
[[mine.rows]]
counted = "popularity"
[[mine.rows]]
name = "long"
set = {"train.max_epochs" = 8, "train.patience" = 1000}
[[mine.rows]]
network = "gru4rec"
set = {"train.max_epochs" = 1}
'''
# A process that halts in the midst of its first training, and keeps its cell until it is killed.
HALTS = '''
import os, signal
from ssd4rec_jax.commands import study
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.run.metrics_log import MetricsLog
write = MetricsLog.write
def write_and_halt(self, record):
    write(self, record)
    if record['kind'] == 'valid' and record['epoch'] == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
MetricsLog.write = write_and_halt
run(study.main)
'''


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_goes_on_alone(tmp_path):
    log, dataset, output = tmp_path / 'log.csv', tiny_dataset(), tmp_path / 'out'
    log.write_text('user,item,timestamp\n' + ''.join(
        f'{user},{item},{event}\n' for user in range(len(dataset.user_ids))
        for event, item in enumerate(dataset.items[dataset.offsets[user]:dataset.offsets[user + 1]])
    ))
    (tmp_path / 'studies.toml').write_text(FILE)

    def start(*program: str) -> subprocess.Popen:
        command = [
            sys.executable, *program, '--study=mine', f'--studies={tmp_path}/studies.toml',
            '--seeds=1', '--dataset=interactions', f'--data_dir={log}', f'--output={output}',
            '--set=model.hidden_size=8', '--set=train.targets_per_step=64',
        ]
        return subprocess.Popen(command, cwd=tmp_path, env=on_one_device(), stdout=subprocess.PIPE, text=True)

    first = start('-c', HALTS)
    try:
        until(lambda: state(first.pid) in 'TZ')
        second = start('-m', 'experiments.study')
        try:
            told = [next(line for line in second.stdout if 'another process runs it' in line)]
            first.send_signal(signal.SIGKILL)
            of_first = first.communicate()[0].splitlines()
            told += [line.rstrip('\n') for line in second.stdout]
            second.wait()
        finally:
            second.kill()
    finally:
        first.kill()
    finished = [line.partition(': ')[0] for line in [*of_first, *told] if 'test NDCG@10' in line]
    assert sorted(finished) == ['[1/3] popularity', '[2/3] long-2024', '[3/3] gru4rec-2024'], (of_first, told)
    assert told[0].startswith('[2/3] long-2024: another process') and told[-1].startswith('3 of 3 cells are finished')
    assert second.returncode == 0
    assert sorted(path.name for path in (output / 'cells').iterdir()) == sorted(
        f'{name}.{kind}' for name in ('popularity', 'long-2024', 'gru4rec-2024') for kind in ('json', 'npz')
    ), 'no lock is left'
    summary = json.loads((output / 'study.json').read_text())
    assert summary['finished'] == 3 and all(row['test'] for row in summary['rows'])
    long = json.loads((output / 'cells' / 'long-2024.json').read_text())
    assert long['epochs'] == 8 and [point['epoch'] for point in long['curve']] == list(range(1, 9))
