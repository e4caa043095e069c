"""A run with everything that an export holds, and its export."""
from pathlib import Path

import pytest

from ssd4rec_jax.export.program import export_program
from ssd4rec_jax.run.saved_run import SavedRun
from tests.export.runs import saved_run


@pytest.fixture(scope='session')
def full() -> SavedRun:
    """Bidirectional layers, the seen-item term and followers, with text ids and histories that are cut."""
    return saved_run(max_history=9, seen_bias=True, follower_weight=2.0)


@pytest.fixture(scope='session')
def exported(full, tmp_path_factory) -> Path:
    """Its export; tests do not change it."""
    pytest.importorskip('flatbuffers')
    path = tmp_path_factory.mktemp('export') / 'full'
    export_program(path, full)
    return path
