"""The name of the chip that figures were measured on."""
import os
from pathlib import Path

import jax

_CPUINFO = Path('/proc/cpuinfo')


def chip_name(cpuinfo: Path = _CPUINFO) -> str:
    """The name of the first accelerator or, without one, of the CPU.

    For a CPU this is its model, where Linux tells it, and the number of cores that this process may use.
    """
    device = jax.devices()[0]
    if device.platform != 'cpu':
        return device.device_kind
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{models[0] if models else device.device_kind}, {cores} core{"" if cores == 1 else "s"}'
