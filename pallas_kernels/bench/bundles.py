"""The instruction bundles of TPU kernels, out of the schedule that libtpu writes when it compiles ahead of time.

A bundle is about a cycle, stalls not counted, and has slots for each unit of the core.
"""
import os
import re
from pathlib import Path
from typing import NamedTuple

# libtpu's files of one kernel: the schedule itself, and what each bundle fills of the units.
_FILE = re.compile(r'-(ssd_[a-z]+)[_.\d]*-\d+-final_(bundles|hlo-static-per-bundle-utilization)\.txt$')
# A bundle in the schedule: its address, a label, and > for each loop that it stands in. The outer loop is the grid.
_BUNDLE = re.compile(r'\s*(?:0x[0-9a-f]+|0)\s+(\w+)?\s*:(\s*>*)\s')


class Schedule(NamedTuple):
    """bundles: those of one kernel, each loop counted once. loops: those of each inner loop, in order.

    units: the share of each unit's slots that the bundles fill.
    """

    bundles: int
    loops: list[int]
    units: dict[str, float]

    @classmethod
    def read(cls, schedule: str, utilization: str) -> 'Schedule':
        """Read libtpu's two files."""
        bundles = [(match[1], match[2].count('>')) for line in schedule.splitlines() if (match := _BUNDLE.match(line))]
        starts = [n for n, (label, depth) in enumerate(bundles) if label == 'LB' and depth == 2]
        end = max((n + 1 for n, (_, depth) in enumerate(bundles) if depth >= 2), default=0)
        head, _, table = utilization.partition('== UTILIZATION:')
        names, slots = head.strip().splitlines()[-2:]
        rows = [[int(n) for n in line.split()] for line in table.strip().splitlines()]
        filled = [sum(column) for column in zip(*rows, strict=True)]
        units = zip(names.split(','), slots.split(), filled, strict=True)
        return cls(
            len(rows), [after - start for start, after in zip(starts, [*starts[1:], end], strict=True)],
            {name.strip(): n / (int(each) * len(rows)) for name, each, n in units},
        )

    def __str__(self) -> str:
        most = sorted(self.units.items(), key=lambda unit: -unit[1])[:4]
        return f'{self.bundles:,} bundles ({", ".join(f"{name} {share:.0%}" for name, share in most)})'


def write_schedules_to(folder: Path) -> None:
    """Have libtpu write the schedule of whatever it compiles in this process. It must not be loaded yet."""
    asked = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
    os.environ['LIBTPU_INIT_ARGS'] = f'{os.environ.get("LIBTPU_INIT_ARGS", "")} {asked}'.strip()


def take_schedules(folder: Path) -> dict[str, Schedule]:
    """{kernel: its schedule} of what was compiled since the last call. libtpu's files, which are large, are removed."""
    texts: dict[str, dict[str, str]] = {}
    for file in sorted(folder.iterdir()):
        if match := _FILE.search(file.name):
            texts.setdefault(match[1], {})[match[2]] = file.read_text()
        file.unlink()
    return {kernel: Schedule.read(*(of[kind] for kind in sorted(of))) for kernel, of in texts.items()}
