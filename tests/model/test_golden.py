"""The model compared with the released PyTorch code, run in float64 (tests/golden): values and every gradient."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssd4rec_jax.commands import parity
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.released_weights import to_params, to_torch_params

GOLDEN = Path(__file__).parent.parent / 'golden'
MODELS = ['ssd4rec_1layer.npz', 'ssd4rec_2layer.npz']


@pytest.mark.parametrize('name', MODELS)
def test_values_and_every_gradient_equal_the_released_model(name, x64):
    golden = parity.load_golden(GOLDEN / name)
    pairs = parity.compare(golden)
    assert set(pairs) == {k for k in golden if k.startswith(('output/', 'grad/'))}
    for quantity, (ours, theirs) in pairs.items():
        assert ours.dtype == np.float64, quantity
        assert parity.relative_difference(ours, theirs) <= 1e-9, quantity
        assert parity.exact_zeros_kept(ours, theirs), quantity


def test_parameters_go_to_pytorch_and_back():
    golden = parity.load_golden(GOLDEN / MODELS[1])
    torch_params = {name.removeprefix('param/'): a for name, a in golden.items() if name.startswith('param/')}
    again = to_torch_params(to_params(torch_params), parity.golden_config(golden))
    assert set(again) == set(torch_params)
    for name, array in torch_params.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize('change, said', [
    (dict(bidirectional='last'), 'model.bidirectional=last'),
    (dict(backward_order='aligned'), 'model.backward_order=aligned'), (dict(time='dt'), 'model.time=dt'),
    (dict(feed_forward=False), 'model.feed_forward=False'),
])
def test_what_the_released_network_cannot_hold_is_not_exported(change, said):
    with pytest.raises(ConfigError, match=f'the released PyTorch network cannot hold a model with .*{said}'):
        to_torch_params({}, ModelConfig(**change))


def run_parity(path, *flags):
    return subprocess.run(
        [sys.executable, '-m', 'experiments.parity', f'--golden={path}', *flags], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_passes_on_the_golden_file():
    done = run_parity(GOLDEN / MODELS[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'grad/BiSSD_layers.0.forward_ssd.A_log' in done.stdout
    assert done.stdout.endswith('all equal\n')


@pytest.mark.slow
def test_the_command_fails_on_changed_numbers(tmp_path):
    golden = parity.load_golden(GOLDEN / MODELS[0])
    changed = ['output/loss', 'grad/BiSSD_layers.0.forward_ssd.conv1d.bias', 'grad/LayerNorm.bias']
    for quantity in changed:
        golden[quantity] = golden[quantity] * (1 + 1e-6)
    # The gradient of the embedding's LayerNorm is exactly zero here, so any other value must fail at every tolerance.
    golden['grad/LayerNorm.bias'] = golden['grad/LayerNorm.bias'] + 1e-30
    np.savez(tmp_path / 'changed.npz', **golden)
    done = run_parity(tmp_path / 'changed.npz')
    assert done.returncode == 1
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith('FAIL')] == [
        k for k in golden if k in changed
    ]


@pytest.mark.slow
def test_a_file_that_is_no_golden_model_is_refused(tmp_path):
    for path in (GOLDEN / 'ssd_groups.npz', tmp_path / 'missing.npz'):
        done = run_parity(path)
        assert done.returncode == 1
        assert str(path) in done.stderr and 'Traceback' not in done.stderr
