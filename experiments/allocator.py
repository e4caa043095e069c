"""Keep memory that XLA's CPU backend frees, for its next step."""
import ctypes
import sys

# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Have glibc reuse freed blocks instead of returning them to the kernel; nothing where there is no glibc.

    XLA allocates a step's temporaries, hundreds of MB, anew every step. glibc maps such blocks from the kernel and
    unmaps them when freed, so every page faults in again: a third of the CPU time of a training step. One arena
    without mmap keeps them. Call it before JAX is imported: later it no longer helps.
    """
    if not sys.platform.startswith('linux'):
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)
