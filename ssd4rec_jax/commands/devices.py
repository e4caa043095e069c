"""Which accelerators this machine can have, told by its device files."""
import glob
import os
import sys

_ACCELERATORS = '/dev/nvidia[0-9]*', '/dev/dxg', '/dev/kfd', '/dev/accel*', '/dev/vfio/[0-9]*'


def skip_absent_accelerators() -> None:
    """Have JAX look for nothing but the CPU on a Linux machine without a device file of a GPU or TPU.

    libtpu, which the test extra brings along, greets such a machine with a page of errors. JAX_PLATFORMS, where set,
    stands. Call it before JAX is imported.
    """
    if sys.platform.startswith('linux') and not any(glob.glob(pattern) for pattern in _ACCELERATORS):
        os.environ.setdefault('JAX_PLATFORMS', 'cpu')
