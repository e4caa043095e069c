"""A finished run, and copies of it to damage."""
import shutil

import pytest

from tests.faults.inside import TINY, call, write_log


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder with a log and `run`, a finished run."""
    root = tmp_path_factory.mktemp('finished') / 'root'
    root.mkdir()
    write_log(root / 'log.csv')
    done = call('train', *TINY, folder=root)
    assert done.code == 0, done
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of it; data that the copy's config names lies in the copy too."""
    shutil.copytree(finished, tmp_path / 'root')
    config = tmp_path / 'root/run/config.json'
    config.write_text(config.read_text().replace(str(finished), str(tmp_path / 'root')))
    return tmp_path / 'root'


@pytest.fixture
def from_checkpoints(root):
    """The same without the saved model, so that the checkpoints answer."""
    shutil.rmtree(root / 'run/model')
    return root
