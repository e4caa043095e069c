"""Where the temporaries of XLA's CPU backend come from: hundreds of MB that it allocates anew every step.

glibc maps such blocks from the kernel and unmaps them when freed, so that every page faults in again: a fifth to a
third of a training step. In huge pages there are 512 times fewer faults, and less to look up while computing.
"""
import ctypes
import os
import sys
from pathlib import Path

_HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
_CONSOLE_SCRIPT = 'ssd4rec'
_TUNABLE = 'glibc.malloc.hugetlb'
# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def tune_allocator() -> None:
    """Have glibc's malloc ask for huge pages or, where that cannot be, keep freed memory; nothing without glibc.

    glibc reads the setting when a process starts. So a command (python -m experiments.NAME, or the console script
    ssd4rec) replaces itself by itself, once, with GLIBC_TUNABLES set; one that holds the setting already stands. Call
    it before JAX is imported.
    """
    if not sys.platform.startswith('linux'):
        return
    tunables = [entry for entry in os.environ.get('GLIBC_TUNABLES', '').split(':') if entry]
    asked = [entry for entry in tunables if entry.startswith(f'{_TUNABLE}=')]
    # argv[0] is '-m' while Python looks for a module: never in a test, a debugger or another script.
    is_command = sys.argv[0] == '-m' or os.path.basename(sys.argv[0]) == _CONSOLE_SCRIPT
    if not asked and is_command and _can_have_huge_pages():
        os.environ['GLIBC_TUNABLES'] = ':'.join([*tunables, f'{_TUNABLE}=1'])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if not asked or asked[-1].endswith('=0'):
        _keep_freed_memory()


def _can_have_huge_pages() -> bool:
    """Whether malloc knows the setting (glibc 2.35) and the kernel heeds it."""
    try:
        name, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').split()
        return tuple(map(int, version.split('.'))) >= (2, 35) and '[never]' not in _HUGE_PAGES.read_text()
    except (OSError, ValueError, AttributeError):  # no glibc, or a kernel without huge pages
        return False


def _keep_freed_memory() -> None:
    """Have malloc reuse freed blocks instead of returning them to the kernel: one arena, no mmap, seldom trimmed."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)
