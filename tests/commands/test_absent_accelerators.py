"""A machine without device files of a GPU or TPU is a CPU, and only such a machine."""
import os

import pytest

from ssd4rec_jax.commands import devices


@pytest.mark.parametrize('files, asked, platforms', [
    ([], None, 'cpu'),
    (['/dev/nvidia0'], None, None),
    (['/dev/accel0'], None, None),
    (['/dev/vfio/3'], None, None),
    (['/dev/vfio/vfio', '/dev/nvidiactl'], None, 'cpu'),
    ([], 'tpu,cpu', 'tpu,cpu'),
])
def test_what_jax_is_told(monkeypatch, files, asked, platforms):
    monkeypatch.setattr(devices.sys, 'platform', 'linux')
    monkeypatch.setattr(devices.glob, 'glob', lambda pattern: devices.glob.fnmatch.filter(files, pattern))
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    if asked:
        monkeypatch.setenv('JAX_PLATFORMS', asked)
    devices.skip_absent_accelerators()
    assert os.environ.get('JAX_PLATFORMS') == platforms
