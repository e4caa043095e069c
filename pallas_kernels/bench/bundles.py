"""The instruction bundles of TPU kernels, out of the schedule that libtpu writes when it compiles ahead of time.

A bundle is about a cycle, stalls not counted, and has slots for each unit of the core.
"""
import os
import re
from pathlib import Path
from typing import NamedTuple

_FILE = re.compile(r'-(ssd_[a-z]+(?:_[a-z]+)*)[_.\d]*-\d+-final_hlo-static-per-bundle-utilization\.txt$')


class Schedule(NamedTuple):
    """bundles: those of one kernel, loops counted once. units: the share of each unit's slots that they fill."""

    bundles: int
    units: dict[str, float]

    @classmethod
    def read(cls, text: str) -> 'Schedule':
        """Read libtpu's table: the names of the units, their slots in a bundle, and what each bundle fills of them."""
        head, _, table = text.partition('== UTILIZATION:')
        names, slots = head.strip().splitlines()[-2:]
        rows = [[int(n) for n in line.split()] for line in table.strip().splitlines()]
        filled = [sum(column) for column in zip(*rows, strict=True)]
        units = zip(names.split(','), slots.split(), filled, strict=True)
        return cls(len(rows), {name.strip(): n / (int(each) * len(rows)) for name, each, n in units})

    def __str__(self) -> str:
        most = sorted(self.units.items(), key=lambda unit: -unit[1])[:4]
        return f'{self.bundles:,} bundles ({", ".join(f"{name} {share:.0%}" for name, share in most)})'


def write_schedules_to(folder: Path) -> None:
    """Have libtpu write the schedule of whatever it compiles in this process. It must not be loaded yet."""
    asked = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
    os.environ['LIBTPU_INIT_ARGS'] = f'{os.environ.get("LIBTPU_INIT_ARGS", "")} {asked}'.strip()


def take_schedules(folder: Path) -> dict[str, Schedule]:
    """{kernel: its schedule} of what was compiled since the last call. libtpu's files, which are large, are removed."""
    found = {}
    for file in sorted(folder.iterdir()):
        if match := _FILE.search(file.name):
            found[match[1]] = Schedule.read(file.read_text())
        file.unlink()
    return found
