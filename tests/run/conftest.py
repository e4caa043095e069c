"""Checkpoints to damage."""
import pytest

from ssd4rec_jax.run.checkpoints import Checkpoints
from tests.run.states import save, state_of


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """A folder with checkpoints 1 and 2; the newest is the best."""
    folder = tmp_path_factory.mktemp('two')
    for step in (1, 2):
        save(Checkpoints(folder), step, state_of(step), {'best_step': step})
    return folder
