"""Accelerator kernels on plain JAX arrays. Knows no Flax, no data and no model."""
from pallas_kernels.ssd.api import ssd_scan
from pallas_kernels.ssd.readout import ssd_readout

__all__ = ['ssd_readout', 'ssd_scan']
