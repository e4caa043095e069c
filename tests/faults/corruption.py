"""Every kind of file of a run and of prepared data, damaged: each damage is noticed with a sentence or harmless."""
import json
import random
import shutil
from collections import Counter
from pathlib import Path

from ssd4rec_jax.rank import evaluation
from ssd4rec_jax.rank.ranker import Ranker
from tests.faults.inside import TINY, Done, call, write_log

KINDS = 'byte', 'truncation', 'deletion', 'emptying', 'swapped keys', 'swapped files'
EVALUATE = 'evaluate', '--workdir=run'
PREPARE = 'prepare', '--dataset=interactions', '--data_dir=log.csv', '--output=out'
# Words by which a command tells that it met damage, or that it answers with less than there was.
_NOTICED = (
    'damaged', 'is not what was written', 'is not the config', 'is gone', 'are lost', 'not a record', 'again',
    'rebuilt',
)


class Corruptions:
    """Damages one file at a time in a copy of a finished or half-finished run, and asks the commands.

    counts: what came of it. problems: what must not be.
    """

    def __init__(self, root: Path):
        self.root = root
        self.folder = root / 'try'
        self._rankers: dict[tuple, Ranker] = {}
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        start = root / 'try'
        start.mkdir()
        write_log(start / 'log.csv')
        self.prepared = self._sound('prepare', *PREPARE[1:])
        self.table = _table(self._sound('train', *TINY))
        self.evaluated = self._sound(*EVALUATE)
        self.valid = self._sound(*EVALUATE, '--split=valid')
        shutil.copytree(start, root / 'finished')
        # As a run that was killed between two epochs: later checkpoints and the result are gone.
        best = json.loads(self.evaluated)['best_epoch']
        self.other = []
        if best:  # what is answered when the best epoch's parameters are lost
            newest = max(self._steps(), key=int)
            best_step = json.loads((start / f'run/checkpoints/{newest}/meta.json').read_text())['best_step']
            shutil.rmtree(start / f'run/checkpoints/{best_step}')
            shutil.rmtree(start / 'run/model', ignore_errors=True)
            for split in ('test', 'valid'):
                self.other.append(call(*EVALUATE, f'--split={split}', folder=start).out)
            (start / 'run/result.json').unlink()
            self.other.append(_table(call('train', *TINY, folder=start).out))
            shutil.rmtree(start)
            shutil.copytree(root / 'finished', start)

    def _sound(self, *command: str) -> str:
        done = call(*command, folder=self.folder)
        assert done.code == 0, done
        return done.out

    def _steps(self) -> list[str]:
        return [path.name for path in (self.folder / 'run/checkpoints').iterdir() if path.name.isdigit()]

    def files(self) -> list[str]:
        """The files of the finished run and of its prepared data, relative."""
        folder = self.root / 'finished'
        places = folder / 'run', folder / 'data', folder / 'out'
        return sorted(
            str(path.relative_to(folder)) for place in places for path in place.rglob('*')
            if path.is_file() and path.name != '.lock'
        )

    def one(self, rng: random.Random, file: str, kind: str) -> None:
        """Damage a file and ask; the answer is as before, or another one with a warning, or an error in a sentence."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.root / 'finished', self.folder)
        if '/checkpoints/' in file:  # from which it answers as long as there is no folder `model`
            shutil.rmtree(self.folder / 'run/model', ignore_errors=True)
        damaged = damage(rng, self.folder, file, kind, self.files())
        if not damaged:
            return
        self.counts['corruptions'] += 1
        what = f'{kind} of {file}'
        if file.startswith('out/'):
            command, expected = PREPARE, self.prepared
        elif file.endswith(('result.json', 'metrics.jsonl')) or rng.random() < 0.2:
            command, expected = ('train', *TINY), self.table
        else:
            command, expected = rng.choice([(EVALUATE, self.evaluated), ((*EVALUATE, '--split=valid'), self.valid)])
        done = self._call(command)
        self._judge(what, command, done, expected)
        if command[0] == 'train' and 'are lost' not in done.out and done.code == 0:  # and what it left is sound
            self._judge(f'{what}, after a training command', EVALUATE, self._call(EVALUATE), self.evaluated)

    def _call(self, command: tuple[str, ...]) -> Done:
        evaluation.Ranker = self._ranker  # type: ignore[assignment, misc]
        try:
            return call(*command, folder=self.folder)
        finally:
            evaluation.Ranker = Ranker  # type: ignore[misc]

    def _ranker(self, network, mesh, longest, **sizes) -> Ranker:
        """A ranker of the same network, mesh and sizes made before, which spares tracing its program anew."""
        key = network, mesh, longest.items.tobytes(), longest.start.tobytes(), longest.stop.tobytes(), *sizes.values()
        if key not in self._rankers:
            self._rankers[key] = Ranker(network, mesh, longest, **sizes)
        return self._rankers[key]

    def _judge(self, what: str, command: tuple[str, ...], done: Done, expected: str) -> None:
        said = done.out + done.err
        answer = _table(done.out) if command[0] == 'train' else done.out
        noticed = any(word in said for word in _NOTICED)
        if done.is_traceback:
            self._problem('tracebacks', f'{what}: {command[0]}: {done.err[-2500:]}')
        elif done.code:
            sentences = [line for line in done.err.splitlines() if line.startswith('error: ')]
            if len(sentences) != 1 or len(sentences[0]) < 20:
                self._problem('endings without a sentence', f'{what}: {command[0]}: {done.err[-800:]}')
            self.counts['noticed with an error'] += 1
        elif answer == expected:
            self.counts['noticed and mended or passed over' if noticed else 'harmless'] += 1
        elif noticed and answer in self.other:
            self.counts['noticed, the next best epoch answers'] += 1
        else:
            self._problem('silent wrong answers', f'{what}: {command[0]}: {answer} {done.err[-500:]}')

    def _problem(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f'{kind}: {text}')

    def sample(self, count: int, seed: int = 0) -> None:
        """Damages drawn at random, spread evenly over files and kinds."""
        rng = random.Random(seed)
        pairs = [(file, kind) for file in self.files() for kind in KINDS if kind != 'swapped keys' or '.json' in file]
        while self.counts['corruptions'] < count:
            rng.shuffle(pairs)
            # Small files that decide much come more often than the many of a checkpoint.
            pairs.sort(key=lambda pair: rng.random() * (3 if 'checkpoints' in pair[0] else 1))
            for file, kind in pairs[:min(len(pairs), count - self.counts['corruptions'])]:
                self.one(rng, file, kind)


def damage(rng: random.Random, folder: Path, file: str, kind: str, files: list[str]) -> bool:
    """Damage a file in place; False where this kind of damage changes nothing in it."""
    path = folder / file
    content = path.read_bytes()
    if kind == 'byte' and content:
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    elif kind == 'truncation' and content:
        path.write_bytes(content[:rng.randrange(len(content))])
    elif kind == 'emptying':
        path.write_bytes(b'')
    elif kind == 'deletion':
        path.unlink()
    elif kind == 'swapped keys':
        path.write_bytes(swap_keys(rng, content))
    elif kind == 'swapped files':
        others = [
            name for name in files
            if name != file and name.split('/')[0] == file.split('/')[0] and (folder / name).exists()
        ]
        other = folder / rng.choice(others)
        theirs = other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(content)
        return theirs != content
    return kind in ('deletion',) or path.read_bytes() != content


def swap_keys(rng: random.Random, content: bytes) -> bytes:
    """A JSON file (or one line of it) in which two values of an object have changed their keys, or a key is gone."""
    *lines, _ = content.split(b'\n') if content.count(b'\n') > 1 and content.startswith(b'{"') else [content, b'']
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except ValueError:
        return content
    objects = [value]
    for entry in objects:
        objects += [v for v in entry.values() if isinstance(v, dict)]
    chosen = rng.choice([entry for entry in objects if len(entry) > 1] or [value])
    a, b = rng.sample(sorted(chosen), 2)
    if rng.random() < 0.3:
        del chosen[a]
    else:
        chosen[a], chosen[b] = chosen[b], chosen[a]
    lines[number] = json.dumps(value).encode()
    return b'\n'.join(lines) + b'\n'


def _table(out: str) -> str:
    """The final table in a training's output."""
    lines = out.splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith(('┏', '┌', '└'))]
    return '\n'.join(lines[marks[0] - 1:marks[-1] + 1]) if marks else ''
