"""Eight simulated CPU devices for every test, and compiled programs that the processes of the tests share."""
import itertools
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
# XLA:CPU's emitters of fusions take as long as all else of a compilation. A later XLA has no others, nor the flag.
EMITTERS = ['--xla_cpu_use_fusion_emitters=false'] * version('jaxlib').startswith('0.10.')
# Most of the suite's time is compilation. With these flags the code runs slower, but it is ready several times sooner.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', *EMITTERS,
    '--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true',
    # XLA ends a process, after 40 s by default, in which one device waits for another that the machine does not run.
    '--xla_cpu_collective_call_terminate_timeout_seconds=1200',
    '--xla_cpu_collective_call_warn_stuck_timeout_seconds=1200',
]).strip()
os.environ.setdefault('SSD4REC_CACHE', os.path.join(tempfile.gettempdir(), f'ssd4rec-tests-{os.getuid()}'))

import hypothesis
import jax
import pytest

from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from tests.browser import browser  # noqa: F401  # a fixture for every test

MAPS, MOST_MAPS = Path('/proc/self/maps'), 50_000  # Linux allows 65,530 by default (vm.max_map_count).
TESTS = itertools.count()

# The same inputs in every run, and none that fails because the machine is busy.
hypothesis.settings.register_profile(
    'tests', derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile('tests')


@pytest.fixture(scope='session', autouse=True)
def compile_cache():
    """Runs inside the test process use the compilation cache, as the commands do."""
    enable_compilation_cache()


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Compiled programs are forgotten before a process has as many memory maps as Linux allows, and XLA crashes."""
    yield
    if next(TESTS) % 4 == 0 and MAPS.exists() and MAPS.read_bytes().count(b'\n') > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Enables float64 inside one test."""
    before = jax.config.jax_enable_x64
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', before)
