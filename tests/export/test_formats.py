"""A recommender exports what `ssd4rec export` does."""
import pytest

from ssd4rec_jax import Recommender, UserError
from ssd4rec_jax.export import program
from ssd4rec_jax.export.formats import FORMATS
from ssd4rec_jax.run.model_folder import save_model
from tests.export.runs import saved_run


@pytest.mark.parametrize('format', ['jax', 'torch'])
def test_a_recommender_is_exported_as_its_run_is(tmp_path, monkeypatch, format):
    pytest.importorskip('flatbuffers')
    monkeypatch.setattr(program, 'PLATFORMS', ['cpu'])
    saved = saved_run(num_layers=1)
    save_model(
        tmp_path / 'model', saved.config, saved.dataset, saved.network.whole(saved.params), step=saved.step,
        best_epoch=saved.best_epoch,
    )
    recommender = Recommender.load(tmp_path / 'model')
    said = recommender.export(tmp_path / 'ours', format=format)
    assert said == FORMATS[format](tmp_path / 'theirs', saved).replace('theirs', 'ours')
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ('ours', 'theirs'))
    # The encoder names the places in the code that it was traced from.
    assert sorted(ours) == sorted(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} <= {'encoder.cpu.bin', 'manifest.json'}
    assert f'"format": "{format}"' in ours['export.json'].decode()
    with pytest.raises(UserError, match="format='onnx' must be one of jax, vectors, torch"):
        recommender.export(tmp_path / 'other', format='onnx')
