"""The large form of the fault harnesses: python -m tests.faults --hours=N [--seed=S] [--json=FILE] [--only=NAME,...]

Runs until the hours are over and prints what came of it after each round; nothing may stand under `problems`.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
HARNESSES = 'matrix', 'corruption', 'fuzz', 'pairs'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--hours', type=float, default=1.0)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--json', type=Path, help='file for the counts')
    parser.add_argument('--only', default=','.join(HARNESSES), help='harnesses to run')
    arguments = parser.parse_args()
    end, seed = time.monotonic() + 3600 * arguments.hours, arguments.seed
    chosen, counts, problems = arguments.only.split(','), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        harnesses = {name: _make(name, Path(folder)) for name in chosen}
        number = 0
        while time.monotonic() < end:
            for name, harness in harnesses.items():
                _round(name, harness, seed + number, number)
            number += 1
            counts = sum((harness.counts for harness in harnesses.values()), Counter[str]())
            problems = [problem for harness in harnesses.values() for problem in harness.problems]
            report = {'seed': seed, 'rounds': number, 'counts': dict(sorted(counts.items())), 'problems': problems}
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1) + '\n')
            print(json.dumps(report['counts']), f'{len(problems)} problems', flush=True)
        if 'matrix' in harnesses:
            harnesses['matrix'].close()
    print('\n'.join(problems))
    return 1 if problems else 0


def _make(name: str, root: Path):
    from tests.faults.corruption import Corruptions
    from tests.faults.fuzz import Fuzz
    from tests.faults.matrix import Matrix
    from tests.faults.pairs import Pairs
    folder = root / name
    folder.mkdir()
    return {'matrix': Matrix, 'corruption': Corruptions, 'fuzz': Fuzz, 'pairs': Pairs}[name](folder)


def _round(name: str, harness, seed: int, number: int) -> None:
    """One round: in the proportions of 100 kills, 50 errors, 4,000 corruptions and 100,000 inputs in 50 rounds."""
    if name == 'matrix':
        harness.sample(kills=2, errors=1, seed=seed)
    elif name == 'corruption':
        harness.sample(harness.counts['corruptions'] + 80, seed=seed)
    elif name == 'fuzz':
        harness.configs(1800, seed)
        harness.folders(200, seed)
        harness.flags(10, seed)
    else:
        harness.preparers(10, f'shared{number}')
        if number % 5 == 0:
            harness.trainings(number)
            harness.savers(harness.root / f'trainings{number}/run', 20)


if __name__ == '__main__':
    sys.exit(main())
