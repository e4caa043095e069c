"""The released PyTorch model: bitwise there and back, and nothing that a checkpoint says is run."""
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import polars as pl
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ssd4rec_jax import Recommender
from ssd4rec_jax.commands import evaluate, export, import_
from ssd4rec_jax.errors import CheckpointError, ConfigError, UserError
from ssd4rec_jax.export import released
from ssd4rec_jax.export.released import export_released, read_checkpoint, settings_of
from ssd4rec_jax.export.torch_file import TorchFile
from ssd4rec_jax.model.released_weights import to_torch_params
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.run.saved_run import load_run
from tests.commands.in_process import call
from tests.export.runs import SMALL, saved_run
from tests.export.torch_files import Config, Parameter, save_like_torch

USERS, ITEMS, CORE = 12, 9, 2


@pytest.fixture
def log(tmp_path):
    """A .inter file in which item 3 is the first that is kept; item 99 and user 7000 come once, first of all."""
    rows = [(7000, 99, 0), *((user, 3 + (user + n) * 2 % ITEMS, 100 * user + n) for user in range(USERS)
                             for n in range(6))]
    lines = ['user_id:token\titem_id:token\ttimestamp:float', *('\t'.join(map(str, row)) for row in rows)]
    (tmp_path / 'shop.inter').write_text('\n'.join(lines) + '\n')
    return tmp_path / 'shop.inter'


def released_weights():
    """Weights under the released names, for the items of `log`, with numbers of their own."""
    saved = saved_run()
    weights = to_torch_params(saved.network.whole(saved.params), saved.config.model)
    weights['item_embedding.weight'] = np.random.default_rng(5).standard_normal((ITEMS + 1, 16)).astype(np.float32)
    return {name: np.array(array, order='C') for name, array in weights.items()}


def recbole_config(**changes):
    return Config(**{
        **SMALL, 'd_conv': 4, 'expand': 2, 'beta': 0.3, 'dropout_prob': 0.4, 'norm_embedding': False,
        'user_inter_num_interval': f'[{CORE},inf)', 'item_inter_num_interval': f'[{CORE},inf)', 'topk': [10, 20],
        **changes,
    })


def checkpoint(path, monkeypatch, weights=None, **more):
    """Write a file as RecBole's trainer does; returns its weights."""
    weights = released_weights() if weights is None else weights
    state = OrderedDict((name, Parameter(a) if 'norm' in name else a) for name, a in weights.items())
    save_like_torch(path, {
        'config': recbole_config(), 'epoch': 3, 'best_valid_score': np.float64(0.1), 'state_dict': state,
        'other_parameter': None, 'optimizer': {'state': {0: {'step': 7, 'exp_avg': np.ones(3, np.float32)}}}, **more,
    }, monkeypatch)
    return weights


@pytest.mark.slow
def test_a_checkpoint_becomes_a_run_and_the_same_weights_again(log, tmp_path, monkeypatch):
    weights = checkpoint(tmp_path / 'ssd.pth', monkeypatch)
    run, back, again = (tmp_path / name for name in ('run', 'back', 'again'))
    done = call(import_.main, f'--checkpoint={tmp_path / "ssd.pth"}', f'--data={log}', f'--workdir={run}')
    assert done.returncode == 0 and f'{USERS} users, {ITEMS} items' in done.stdout and not done.stderr
    saved = load_run(run)
    model = saved.config.model
    assert (model.beta, model.norm_embedding, model.num_layers, model.headdim) == (0.3, False, 2, 8)
    # In order of first appearance of the file: user 0 reads 3, 5, 7, 9, 11, 4, user 1 begins with 5.
    assert saved.dataset.item_ids.tolist() == [3, 5, 7, 9, 11, 4, 6, 8, 10]
    assert call(evaluate.main, f'--workdir={run}', '--json').returncode == 0
    assert len(Recommender.load(run).recommend(users=['3'], k=2)) == 2
    # And out again, bit for bit; what was written is read by import too.
    done = call(export.main, f'--workdir={run}', f'--output={back}', '--format=torch')
    assert done.returncode == 0, done.stderr
    written = load_file(back / 'weights.safetensors')
    assert set(written) == set(weights)
    for name, array in weights.items():
        assert written[name].dtype == array.dtype and written[name].tobytes() == array.tobytes(), name
    assert pl.read_parquet(back / 'items.parquet').rows()[:2] == [(1, 3), (2, 5)]
    done = call(import_.main, f'--checkpoint={back / "weights.safetensors"}', f'--data={log}', f'--workdir={again}')
    assert done.returncode == 0 and load_run(again).config.model == model
    assert (run / 'weights.safetensors').read_bytes() == (again / 'weights.safetensors').read_bytes()


def test_a_run_goes_out_and_comes_back_bitwise(tmp_path):
    saved = saved_run()
    export_released(tmp_path / 'out', saved)
    found = read_checkpoint(tmp_path / 'out/weights.safetensors')
    expected = to_torch_params(saved.network.whole(saved.params), saved.config.model)
    assert found.settings['beta'] == saved.config.model.beta
    assert jax.tree.map(np.ndarray.tobytes, found.weights) == jax.tree.map(np.ndarray.tobytes, expected)


@pytest.mark.parametrize('change, said', [
    (dict(seen_bias=True), 'model.seen_bias'), (dict(follower_weight=1.0), 'model.follower_weight=1.0'),
    (dict(fit_followers=True), 'model.fit_followers'),
    (dict(scores='cosine'), 'model.scores=cosine'), (dict(ngroups=2), 'model.ngroups=2'),
])
def test_what_the_released_network_cannot_hold_is_refused(change, said, tmp_path):
    with pytest.raises(ConfigError, match=f'the released PyTorch network cannot hold a model with {said}'):
        export_released(tmp_path / 'out', saved_run(**change))
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    out, saved = tmp_path / 'out', saved_run(num_layers=1)
    export_released(out, saved)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fails(*args, **kwargs):
        raise SafetensorError('I/O error: No space left on device')

    monkeypatch.setattr(released, 'save_file', fails)
    with pytest.raises(UserError, match='an export cannot be written to .*No space left.*make room or name another'):
        export_released(out, saved_run(num_layers=2))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize('settings', [[1], {'beta': float('inf'), 'num_layers': 'many'}])
def test_settings_that_mean_nothing_are_unsaid(settings, tmp_path):
    save_file(released_weights(), tmp_path / 'w.safetensors', metadata={'config': json.dumps(settings)})
    config, unsaid = settings_of(read_checkpoint(tmp_path / 'w.safetensors'), default_config('interactions'))
    assert unsaid == ['beta', 'norm_embedding'] and (config.model.beta, config.model.num_layers) == (0.1, 2)


def test_views_of_a_storage_are_read_as_they_lie(tmp_path, monkeypatch):
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_like_torch(tmp_path / 'v.pth', {'rows': whole[1:], 'turned': whole.T, 'none': whole[:0]}, monkeypatch)
    file = TorchFile(tmp_path / 'v.pth')
    found = file.arrays(file.content)
    np.testing.assert_array_equal(found['rows'], whole[1:])
    np.testing.assert_array_equal(found['turned'], whole.T)
    assert found['none'].shape == (0, 4)


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, (f'touch {os.environ["TOUCHED"]}',)


def test_no_code_of_a_checkpoint_runs(log, tmp_path, monkeypatch):
    monkeypatch.setenv('TOUCHED', str(tmp_path / 'touched'))
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / 'touched').exists()  # so it does elsewhere
    (tmp_path / 'touched').unlink()
    weights = checkpoint(tmp_path / 'evil.pth', monkeypatch, other_parameter=[Evil(), {Evil(): Evil()}], epoch=Evil())
    found = read_checkpoint(tmp_path / 'evil.pth')
    assert found.weights.keys() == weights.keys() and not (tmp_path / 'touched').exists()


def zipped(pickled):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as file:
        file.writestr('a/data.pkl', pickled)
    return out.getvalue()


@pytest.mark.parametrize('content, said', [
    (b'PK nothing', 'is no file that torch.save of PyTorch 1.6 or later wrote'),
    (pickle.dumps({}), 'is no file that torch.save of PyTorch 1.6 or later wrote'),
    (zipped(b'cos\nsystem\n(S"x"\ntR.'), 'holds no item_embedding.weight'),
    (zipped(b'garbage'), 'is no file that torch.save of PyTorch 1.6 or later wrote'),
    (zipped(pickle.dumps([1])), 'holds no item_embedding.weight'),
])
def test_other_files_are_refused(content, said, tmp_path):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_tensor_beyond_its_storage_is_refused(tmp_path, monkeypatch):
    checkpoint(tmp_path / 'short.pth', monkeypatch)
    with zipfile.ZipFile(tmp_path / 'short.pth') as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / 'shorter.pth', 'w') as file:
        for name, content in parts.items():
            file.writestr(name, content[:-4] if name.endswith('/data/0') else content)
    with pytest.raises(CheckpointError, match='cannot be read .it goes beyond its storage'):
        read_checkpoint(tmp_path / 'shorter.pth')


def test_what_does_not_fit_is_said_and_the_way_out_works(log, tmp_path, monkeypatch):
    weights, path, run = released_weights(), tmp_path / 'ssd.pth', tmp_path / 'run'
    arguments = f'--checkpoint={path}', f'--data={log}', f'--workdir={run}'
    # A state dict alone says neither how often an item has to occur nor what its shapes do not show.
    save_like_torch(path, weights, monkeypatch)
    done = call(import_.main, *arguments)
    assert done.returncode == 1 and 'has 10 items' in done.stderr and 'the checkpoint has 9' in done.stderr
    assert 'or set data.min_user_interactions and data.min_item_interactions' in done.stderr and not run.exists()
    cores = f'--set=data.min_user_interactions={CORE}', f'--set=data.min_item_interactions={CORE}'
    done = call(import_.main, *arguments, *cores, '--set=model.beta=0.3')
    assert done.returncode == 0 and load_run(run).config.model.beta == 0.3
    assert done.stderr.splitlines() == [
        'the checkpoint does not say model.beta: 0.3 is taken',
        'the checkpoint does not say model.norm_embedding: True is taken',
    ]
    done = call(import_.main, *arguments, *cores)
    assert done.returncode == 1 and 'an import writes into a new folder: name another one' in done.stderr
    done = call(import_.main, *arguments[:2], *cores, f'--workdir={tmp_path / "other"}', '--set=model.hidden_size=32')
    assert done.returncode == 1 and not (tmp_path / 'other').exists()
    assert 'the checkpoint does not fit its settings: item_embedding is (10, 16) in it' in done.stderr


@pytest.mark.parametrize('change, said', [
    ({'BiSSD_layers.0.forward_ssd.A_log': None}, 'is of no SSD4Rec network'),
    ({'position_embedding.weight': np.zeros(3, np.float32)}, "no parameter named 'position_embedding.weight'"),
])
def test_weights_of_another_network_are_refused(change, said, log, tmp_path, monkeypatch):
    weights = {name: a for name, a in {**released_weights(), **change}.items() if a is not None}
    checkpoint(tmp_path / 'ssd.pth', monkeypatch, weights)
    done = call(
        import_.main, f'--checkpoint={tmp_path / "ssd.pth"}', f'--data={log}', f'--workdir={tmp_path / "run"}'
    )
    assert done.returncode == 1 and said in done.stderr and not (tmp_path / 'run').exists()


def test_what_import_needs_is_asked_for(log, tmp_path, monkeypatch):
    checkpoint(tmp_path / 'ssd.pth', monkeypatch)
    done = call(import_.main, f'--workdir={tmp_path / "run"}')
    assert done.returncode == 1 and 'give --checkpoint, the file of the released model, and --data' in done.stderr
    done = call(import_.main, f'--workdir={tmp_path / "run"}', '--checkpoint=gone.pth', f'--data={log}')
    assert done.returncode == 1 and 'there is no file gone.pth: name the checkpoint' in done.stderr
