"""What a command says about the backend that it runs on."""
import glob
import os

import jax


def backend_warning() -> str | None:
    """A sentence if this machine has an NVIDIA GPU or a TPU that this JAX does not use."""
    if jax.default_backend() != 'cpu' or os.environ.get('JAX_PLATFORMS', '').startswith('cpu'):
        return None
    if glob.glob('/dev/nvidia[0-9]*'):
        return 'this machine has an NVIDIA GPU but JAX runs on the CPU: pip install "ssd4rec-jax[gpu]"'
    if glob.glob('/dev/accel[0-9]*'):
        return 'this machine has a TPU but JAX runs on the CPU: pip install "ssd4rec-jax[tpu]"'
    return None
