"""A finished run and a stopped one, and copies of them to damage."""
import shutil
from pathlib import Path

import pytest

from ssd4rec_jax.train.stop_signals import StopSignals
from tests.faults.inside import TINY, call, write_log


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """A folder with a log and `run`, a finished run."""
    root = tmp_path_factory.mktemp('finished') / 'root'
    root.mkdir()
    write_log(root / 'log.csv')
    done = call('train', *TINY, folder=root)
    assert done.code == 0, done
    return root


@pytest.fixture(scope='session')
def stopped(tmp_path_factory):
    """The same with a run that was stopped after two steps of its second epoch: its newest checkpoints end no epoch."""
    root = tmp_path_factory.mktemp('stopped') / 'root'
    root.mkdir()
    write_log(root / 'log.csv')
    asked = []

    def requested(self: StopSignals) -> bool:
        asked.append(1)
        return len(asked) == 6  # After three steps, the validation, and two steps more.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, 'requested', requested)
        done = call('train', *TINY, folder=root)
    assert done.code == 143, done
    (root / 'said').write_text(done.out)
    return root


def _copied(source: Path, target: Path) -> Path:
    """A copy of a run's folder; data that its config names lies in the copy too."""
    shutil.copytree(source, target)
    config = target / 'run/config.json'
    config.write_text(config.read_text().replace(str(source), str(target)))
    return target


@pytest.fixture
def root(finished, tmp_path):
    """A copy of the finished run."""
    return _copied(finished, tmp_path / 'root')


@pytest.fixture
def half(stopped, tmp_path):
    """A copy of the stopped run; the file `said` holds what its training said."""
    return _copied(stopped, tmp_path / 'root')


@pytest.fixture
def from_checkpoints(root):
    """The finished run without its saved model, so that the checkpoints answer."""
    shutil.rmtree(root / 'run/model')
    return root
