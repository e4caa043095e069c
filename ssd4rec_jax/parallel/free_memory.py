"""How many bytes this process can still get: the least of what its limits, its control groups and the machine leave."""
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# The files of a control group that hold its limit and its use, by the kind of its file system.
_LIMIT_AND_USE = {
    'cgroup2': ('memory.max', 'memory.current'), 'cgroup': ('memory.limit_in_bytes', 'memory.usage_in_bytes'),
}
# The page cache inside that use, which the kernel takes back before anything fails. Version 1 counts it for a group
# alone and, as total_*, with the groups below it; version 2 knows only the second and calls it by the first name.
_FILE_CACHE = {
    'cgroup2': ('inactive_file', 'active_file'), 'cgroup': ('total_inactive_file', 'total_active_file'),
}


def available_bytes(root: Path = Path('/')) -> int | None:
    """The bytes that this process can still get, at least 0; None where nothing says so, as outside Linux.

    root: where `proc` and the file systems of control groups are found.
    """
    found = [*_address_space(root), *_control_groups(root), *_machine(root)]
    return max(0, min(found)) if found else None


def _address_space(root: Path) -> Iterator[int]:
    """What `ulimit -v` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        for line in _lines(root / 'proc/self/statm'):
            yield limit - int(line.split()[0]) * os.sysconf('SC_PAGE_SIZE')


def _machine(root: Path) -> Iterator[int]:
    """What the machine has left, with its swap."""
    kibibytes = _numbers(root / 'proc/meminfo')
    if 'MemAvailable:' in kibibytes:
        yield 1024 * (kibibytes['MemAvailable:'] + kibibytes.get('SwapFree:', 0))


def _control_groups(root: Path) -> Iterator[int]:
    """What the control group of this process (a container, a job of a scheduler) and each one above it leave."""
    for kind, mount, group in _memory_groups(root):
        for place in (group, *group.parents):
            folder = root / mount.relative_to('/') / place
            (limit, *_), (use, *_) = (_lines(folder / name) or ['max'] for name in _LIMIT_AND_USE[kind])
            if 'max' not in (limit, use):
                cached = _numbers(folder / 'memory.stat')
                yield int(limit) - int(use) + sum(cached.get(name, 0) for name in _FILE_CACHE[kind])


def _memory_groups(root: Path) -> Iterator[tuple[str, PurePosixPath, PurePosixPath]]:
    """(file system's kind, where it is mounted, this process's group below that) of all that limit memory."""
    groups = {}
    for line in _lines(root / 'proc/self/cgroup'):
        _, controllers, path = line.split(':', 2)
        if not controllers or 'memory' in controllers.split(','):
            groups['cgroup' if controllers else 'cgroup2'] = PurePosixPath(path)
    for line in _lines(root / 'proc/self/mountinfo'):
        _, _, _, top, mount, *others = line.split()
        kind, *_, options = others[others.index('-') + 1:]
        if kind in groups and (kind == 'cgroup2' or 'memory' in options.split(',')):
            # A container may see only its own group, mounted as if it were the top.
            seen = groups[kind].is_relative_to(top) and '..' not in groups[kind].parts
            yield kind, PurePosixPath(mount), groups[kind].relative_to(top) if seen else PurePosixPath()


def _numbers(path: Path) -> dict[str, int]:
    """The first two words of each line, a name and a number."""
    return {words[0]: int(words[1]) for words in map(str.split, _lines(path))}


def _lines(path: Path) -> list[str]:
    """A small file's lines; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
