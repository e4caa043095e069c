"""Runs inside the test process use the compile cache as the commands do."""
import pytest

from experiments.runtime import enable_compilation_cache


@pytest.fixture(scope='session', autouse=True)
def compile_cache():
    enable_compilation_cache()
