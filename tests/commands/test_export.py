"""The command that writes an export of a saved model."""
import json

import pytest

from ssd4rec_jax.commands import export
from ssd4rec_jax.export import program
from ssd4rec_jax.run.model_folder import save_model
from tests.commands.in_process import call
from tests.export.runs import saved_run


@pytest.fixture
def model(tmp_path):
    """The folder of a saved model."""
    saved = saved_run(num_layers=1)
    params = saved.network.whole(saved.params)
    save_model(tmp_path / 'model', saved.config, saved.dataset, params, step=1, best_epoch=1, histories=False)
    return tmp_path / 'model'


def test_a_saved_model_is_exported_in_each_format(model, tmp_path, monkeypatch):
    pytest.importorskip('usearch')
    pytest.importorskip('flatbuffers')
    monkeypatch.setattr(program, 'PLATFORMS', ['cpu'])
    out = tmp_path / 'out'
    done = call(export.main, f'--workdir={model}', f'--output={out}')
    assert done.returncode == 0 and f"python {out}/load.py '[\"ITEM\"" in done.stdout
    done = call(export.main, f'--workdir={model}', f'--output={out}', '--format=vectors')
    assert done.returncode == 0 and 'without histories of users there is nothing to measure' in done.stdout
    done = call(export.main, f'--workdir={model}', f'--output={out}', '--format=torch')
    assert done.returncode == 0 and json.loads((out / 'export.json').read_text())['format'] == 'torch'
    assert {p.name for p in out.iterdir()} == {
        'export.json', 'manifest.json', 'weights.safetensors', 'items.parquet'
    }


def test_the_folder_is_asked_for_and_what_is_no_export_stays(model, tmp_path):
    done = call(export.main, f'--workdir={model}')
    assert done.returncode == 1 and 'give --output, the folder to write' in done.stderr
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    done = call(export.main, f'--workdir={model}', f'--output={model}', '--format=torch')
    assert done.returncode == 1 and 'is not empty and no export' in done.stderr and before == {
        p.name: p.read_bytes() for p in model.iterdir()
    }
    assert call(export.main, f'--workdir={model}', f'--output={tmp_path / "out"}', '--format=torch').returncode == 0
