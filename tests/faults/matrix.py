"""The fault matrix: commands that are killed or meet a failing disk at one file operation, then run again.

Whatever happens, the answer after the second run equals that of a run that was never disturbed; a command that fails
says so in one sentence.
"""
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from tests.faults.inside import TINY, Done, write_log
from tests.processes import ROOT, on_one_device

ERRORS = 'ENOSPC', 'EDQUOT', 'EIO', 'EIO on reading', 'short'
_SPEED = 'targets/s', 'tokens/s', 'train_seconds', 'evaluation_seconds'


def build_shim(folder: Path) -> Path:
    """tests/faults/shim.c as a library that can be preloaded."""
    compiler = (sysconfig.get_config_var('CC') or 'cc').split()[0]
    compiler = compiler if shutil.which(compiler) else 'cc'
    library = folder / 'shim.so'
    subprocess.run(
        [compiler, '-shared', '-fPIC', '-O2', '-o', library, Path(__file__).with_name('shim.c'), '-ldl'], check=True
    )
    return library


class Worker:
    """A process that calls commands with faults armed; started anew once a fault has killed it."""

    def __init__(self, shim: Path, under: Path):
        self._environment = on_one_device(LD_PRELOAD=str(shim), FAULT_UNDER=str(under), GLIBC_TUNABLES='')
        self._process: subprocess.Popen[str] | None = None

    def call(
        self, command: str, *arguments: str, folder: Path, how: str = 'none', at: int = -1
    ) -> tuple[Done | None, int, bool]:
        """(how the command ended, None if it was killed; operations counted; whether the fault took place)."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'tests.faults.worker'], cwd=ROOT, env=self._environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
        assert self._process.stdin and self._process.stdout
        job = {'command': command, 'arguments': arguments, 'folder': str(folder), 'how': how, 'at': at}
        self._process.stdin.write(json.dumps(job) + '\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            return None, 0, True
        answer = json.loads(line)
        return Done(answer['code'], answer['out'], answer['err']), answer['count'], bool(answer['hit'])

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that is disturbed in a copy of a folder, and what is compared afterwards.

    start: the folder's name below the matrix's root. checks: commands whose answers must not change.
    """

    name: str
    start: str
    command: tuple[str, ...]
    checks: tuple[tuple[str, ...], ...] = ()


MORE = (*TINY, '--set=train.max_epochs=3', '--adopt_config')
# Checkpoints at the end alone: the best epoch's, which waits in memory until then, and the last one.
SELDOM = (*TINY, '--set=train.max_epochs=4', '--set=train.checkpoint_seconds=600')
EVALUATE, RECOMMEND = ('evaluate', '--workdir=run'), ('recommend', '--workdir=run', '--users=1,2,3', '--exclude_seen')
SCENARIOS = (
    Scenario('train', 'fresh', ('train', *TINY), (EVALUATE, RECOMMEND)),
    Scenario('seldom', 'fresh', ('train', *SELDOM), (EVALUATE,)),
    Scenario('resume', 'half', ('train', *TINY), (EVALUATE,)),
    Scenario('adopt', 'finished', ('train', *MORE), (EVALUATE,)),
    Scenario('prepare', 'fresh', ('prepare', '--dataset=interactions', '--data_dir=log.csv', '--output=out')),
    Scenario('evaluate', 'finished', EVALUATE, (EVALUATE,)),
    Scenario('recommend', 'finished', RECOMMEND, (RECOMMEND,)),
    Scenario('table', 'finished', (*RECOMMEND, '--output=table.parquet')),
)


class Matrix:
    """Runs disturbed commands below a folder and counts what came of them; `problems` lists what must not be."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.worker = Worker(build_shim(root), self.root / 'try')
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._operations: dict[tuple[str, str], int] = {}
        self._expected: dict[str, Any] = {}
        (self.root / 'fresh').mkdir()
        write_log(self.root / 'fresh' / 'log.csv')
        self._make('finished', 'fresh', ('train', *TINY))
        self._make_half()

    def _make(self, name: str, start: str, command: tuple[str, ...]) -> None:
        folder = self._copy(start)
        done, _, _ = self.worker.call(command[0], *command[1:], folder=folder)
        assert done is not None and done.code == 0, done
        shutil.copytree(folder, self.root / name, symlinks=True)

    def _make_half(self) -> None:
        """`half`: a run whose later checkpoints, log lines and result are gone, as if it had been killed."""
        folder = self._copy('fresh')
        _, operations, _ = self.worker.call('train', *TINY, folder=folder)
        folder = self._copy('fresh')
        done, _, _ = self.worker.call('train', *TINY, folder=folder, how='kill', at=operations // 2)
        assert done is None
        shutil.copytree(folder, self.root / 'half', symlinks=True)

    def _copy(self, start: str) -> Path:
        """A fresh copy in the one place where faults happen, so that all paths are alike."""
        folder = self.root / 'try'
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / start, folder, symlinks=True)
        return folder

    def _state(self, scenario: Scenario, folder: Path, done: Done) -> Any:
        """All that must be equal in the end."""
        answers = [done.out] if scenario.command[0] != 'train' else []
        answers += [pl.read_parquet(table).rows() for table in folder.glob('*.parquet')]
        for check in scenario.checks:
            answer, _, _ = self.worker.call(check[0], *check[1:], folder=folder)
            answers.append(answer and (answer.code, answer.out))
        if scenario.command[0] == 'train':
            result = json.loads((folder / 'run/result.json').read_text())
            answers.append({key: result[key] for key in ('parameters_sha256', 'valid', 'test', 'best_epoch', 'epochs')})
            records = [json.loads(line) for line in (folder / 'run/metrics.jsonl').read_text().splitlines()]
            answers.append([{k: v for k, v in record.items() if k not in _SPEED} for record in records])
        return answers

    def operations(self, scenario: Scenario, how: str) -> int:
        """How many operations there are at which this fault can happen."""
        if (scenario.name, how) not in self._operations:
            folder = self._copy(scenario.start)
            done, count, _ = self.worker.call(scenario.command[0], *scenario.command[1:], folder=folder, how=how)
            assert done is not None and done.code == 0, done
            self._operations[scenario.name, how] = count
            self._expected.setdefault(scenario.name, self._state(scenario, folder, done))
        return self._operations[scenario.name, how]

    def disturb(self, scenario: Scenario, how: str, at: int) -> bool:
        """One fault, the same command again, and the comparison; False where the command ended before the fault."""
        self.operations(scenario, how)
        what = f'{scenario.name}: {how} at operation {at}'
        folder = self._copy(scenario.start)
        first, _, hit = self.worker.call(scenario.command[0], *scenario.command[1:], folder=folder, how=how, at=at)
        if not hit:
            self.counts['not reached'] += 1
            return False
        self.counts['kills' if how == 'kill' else 'injected errors'] += 1
        if first is not None:
            if first.is_traceback:
                self._problem('tracebacks', f'{what}: {first.err[-1500:]}')
            elif first.code and sum(line.startswith('error: ') for line in first.err.splitlines()) != 1:
                self._problem('endings without a sentence', f'{what}: code {first.code}, {first.err[-500:]}')
        if scenario.name == 'adopt':  # in between, the run answers as before or as afterwards
            between, _, _ = self.worker.call(*EVALUATE, folder=folder)
            answers = [self._state_of('finished'), self._expected[scenario.name][0]]
            if between is None or (between.code, between.out) not in answers:
                self._problem('silent wrong answers', f'{what}: in between {between}')
        second, _, _ = self.worker.call(scenario.command[0], *scenario.command[1:], folder=folder)
        if second is None or second.code or second.is_traceback:
            self._problem('runs that did not go on', f'{what}: then {second}')
            return True
        if self._state(scenario, folder, second) != self._expected[scenario.name]:
            self._problem('silent wrong answers', f'{what}: another result')
        self.counts['equal after a rerun'] += 1
        return True

    def _state_of(self, start: str) -> Any:
        if start not in self._expected:
            done, _, _ = self.worker.call(*EVALUATE, folder=self.root / start)
            self._expected[start] = done and (done.code, done.out)
        return self._expected[start]

    def _problem(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f'{kind}: {text}')

    def sample(self, kills: int, errors: int, seed: int = 0) -> None:
        """Faults at operations drawn at random, spread over scenarios and kinds."""
        rng = random.Random(seed)
        changing = [scenario for scenario in SCENARIOS if scenario.command not in (EVALUATE, RECOMMEND)]
        for _ in range(kills):
            self._one(rng, rng.choice(changing), 'kill')
        for _ in range(errors):
            how = rng.choice(ERRORS)
            among = SCENARIOS if how == 'EIO on reading' else changing
            self._one(rng, rng.choice(among), how)

    def _one(self, rng: random.Random, scenario: Scenario, how: str) -> None:
        # The number of operations differs a little between runs, so that a late one may not be reached.
        last = self.operations(scenario, how)
        while last and not self.disturb(scenario, how, at := rng.randint(1, last)):
            last = at - 1

    def close(self) -> None:
        self.worker.close()
