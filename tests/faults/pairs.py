"""Two processes on one folder of every kind, at the same time, again and again."""
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from ssd4rec_jax.run.manifest import Damaged, verify
from tests.faults.inside import TINY, write_log
from tests.processes import on_one_device
from tests.waiting import until

# Prepares again and again without JAX, which takes milliseconds: argv is the log, the folder, and how often.
_PREPARE = """
import json, sys
from pathlib import Path
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.prepare import fingerprint, prepare
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.errors import UserError
log, folder, rounds = sys.argv[1:]
for _ in range(int(rounds)):
    source = find_source('interactions', log)
    try:
        dataset, _ = prepare(source, DataConfig(), Path(folder))
        own = dataset.fingerprint == fingerprint(source, DataConfig())
        print(json.dumps([own, int(dataset.items.sum()), int(dataset.offsets[-1]), dataset.num_items]), flush=True)
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
"""
# Saves a model again and again: argv is the run, the folder, whether with histories, and how often.
_SAVE = """
import sys
from ssd4rec_jax import Recommender
run, folder, histories, rounds = sys.argv[1:]
recommender = Recommender.load(run)
print('loaded', flush=True)
sys.stdin.readline()
for _ in range(int(rounds)):
    recommender.save(folder, histories=histories == 'with')
"""


class Pairs:
    """Counts of what came of it; `problems` lists what must not be."""

    def __init__(self, root: Path):
        self.root = root
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        for number in (0, 1):
            write_log(root / f'log{number}.csv', seed=number, items=12 + 3 * number)
        self._environment = on_one_device()

    def _start(self, *command: str, folder: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command], cwd=folder or self.root, env=self._environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def preparers(self, rounds: int, name: str = 'shared') -> None:
        """Three processes prepare two logs into one folder: each gets its own log's data, or an error in a sentence."""
        expected = {}
        for log in ('log0.csv', 'log1.csv'):
            alone = self._start('-c', _PREPARE, log, f'alone-{log}', '1')
            expected[log] = json.loads(alone.communicate()[0])
        logs = 'log0.csv', 'log1.csv', 'log0.csv'
        processes = [self._start('-c', _PREPARE, log, name, str(rounds)) for log in logs]
        for log, process in zip(logs, processes, strict=True):
            out, err = process.communicate()
            if process.returncode or 'Traceback' in err:
                self._problem('tracebacks', f'preparing {log}: {err[-1500:]}')
            for line in out.splitlines():
                answer = json.loads(line)
                self.counts['preparations side by side'] += 1
                if isinstance(answer, str):
                    self.counts['preparations refused in a sentence'] += 1
                elif answer != expected[log]:
                    self._problem('silent wrong answers', f'preparing {log}: {answer} instead of {expected[log]}')

    def trainings(self, number: int) -> None:
        """Two trainings of one workdir with an evaluation beside: one trains, the other refuses, none is disturbed."""
        folder = self.root / f'trainings{number}'
        folder.mkdir()
        write_log(folder / 'log.csv')
        both = [self._start('-m', 'experiments.train', *TINY, folder=folder) for _ in range(2)]
        until(lambda: list(folder.glob('run/checkpoints/[0-9]*')) or all(each.poll() is not None for each in both))
        beside = self._start('-m', 'experiments.evaluate', '--workdir=run', folder=folder)
        ended = [(process.communicate(), process.returncode) for process in (*both, beside)]
        self.counts['pairs of trainings'] += 1
        if any('Traceback' in err for (_, err), _ in ended):
            self._problem('tracebacks', str(ended)[-3000:])
        codes = sorted(code for _, code in ended[:2])
        finished = [out for (out, _), code in ended[:2] if code == 0]
        if codes not in ([0, 0], [0, 1]) or (codes == [0, 1] and 'another process is training' not in str(ended)):
            self._problem('runs that did not go on', str(ended)[-3000:])
        again = self._start('-m', 'experiments.evaluate', '--workdir=run', folder=folder)
        out, err = again.communicate()
        result = json.loads((folder / 'run/result.json').read_text())
        if (
            not finished or again.returncode
            or any(json.loads(out)[key] != value for key, value in result['test'].items())
        ):
            self._problem('silent wrong answers', f'{out} {err[-1000:]}')

    def savers(self, run: Path, rounds: int) -> None:
        """Two processes save a run's model into one folder, one of them without histories: one of both stays, whole."""
        both = [self._start('-c', _SAVE, str(run), 'saved', how, str(rounds)) for how in ('with', 'without')]
        for process in both:
            assert process.stdout
            process.stdout.readline()
        for process in both:
            assert process.stdin
            process.stdin.write('go\n')
            process.stdin.flush()
        for process in both:
            out, err = process.communicate()
            if process.returncode:
                self._problem('models that could not be saved', f'{out} {err[-1000:]}')
        self.counts['models saved side by side'] += 2 * rounds
        try:
            verify(self.root / 'saved')
        except Damaged as damage:
            self._problem('silent wrong answers', str(damage))
        if left := sorted(path.name for path in self.root.glob('.saved*')):
            self._problem('models that could not be saved', f'left: {left}')

    def _problem(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f'{kind}: {text}')
