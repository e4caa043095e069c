"""Accelerator kernels on plain JAX arrays. Knows no Flax, no data and no model."""
from pallas_kernels.ssd.api import ssd_scan

__all__ = ['ssd_scan']
