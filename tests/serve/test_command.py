"""The command that serves a model: what it asks for."""
import sys

from ssd4rec_jax.commands import serve
from tests.commands.in_process import call


def test_a_model_is_asked_for():
    done = call(serve.main)
    assert done.returncode == 1 and 'give --model, the folder of a saved model' in done.stderr


def test_without_fastapi_the_extra_is_named(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith('ssd4rec_jax.serve')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'fastapi', None)
    done = call(serve.main, f'--model={tmp_path}')
    assert done.returncode == 1 and "serving needs fastapi: pip install 'ssd4rec-jax[serve]'" in done.stderr
