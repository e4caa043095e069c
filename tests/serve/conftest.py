"""A service of a small run, in the test process."""
from pathlib import Path

import jax
import pytest

pytest.importorskip('fastapi')

from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.run.saved_run import SavedRun
from ssd4rec_jax.serve.event_log import EventLog
from ssd4rec_jax.serve.service import Service
from tests.export.runs import saved_run
from tests.patient import Patient

LIMITS = Patient(body=20_000, id_length=30, histories=40, k=20, ids=60, events=50, queue=80)

ONE_DEVICE = device_mesh(jax.devices()[:1])


@pytest.fixture(scope='session')
def small() -> SavedRun:
    """One bidirectional layer, the seen-item term and followers, on one device, as most services have it."""
    return saved_run(mesh=ONE_DEVICE, num_layers=1, seen_bias=True, follower_weight=2.0)


@pytest.fixture(scope='module')
def service(small, tmp_path_factory):
    """A warm service, whose log grows from test to test of a file, and with it the histories of its users."""
    running = served(small, tmp_path_factory.mktemp('events'))
    running.warm()
    yield running
    running.stop()


def served(saved: SavedRun, events: Path, **more) -> Service:
    """A service of a run and a folder of events that calls itself ready, and compiles when it is asked."""
    running = Service(saved, EventLog(events), **{'limits': LIMITS, 'clock': lambda: 1_700_000_000.0, **more})
    running.ready = True
    return running
