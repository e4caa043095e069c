"""Compare the model with a golden file of the released PyTorch code.

    ssd4rec parity --golden=tests/golden/ssd4rec_2layer.npz

Values and all gradients are compared, in float64. Prints max|a - b| / max|b| for the readout, the scores, the loss and
each gradient; exit code 1 if one is above --tolerance, or if a quantity that is exactly zero there is not exactly zero
here.
"""
import zipfile
from pathlib import Path

import jax
import numpy as np
from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import build_step, choose_step_shape, plan_epoch
from ssd4rec_jax.errors import DataError, UserError
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.model.released_weights import from_torch_layout, path_of, to_params
from ssd4rec_jax.model.scores import scores
from ssd4rec_jax.show.output import write_stdout
from ssd4rec_jax.train.full_softmax import softmax_loss_sum

_GOLDEN = flags.DEFINE_string('golden', None, 'Golden .npz file of the released model (see tests/golden).')
_TOLERANCE = flags.DEFINE_float('tolerance', 1e-9, 'Largest relative difference allowed.')

_CONFIG_KEYS = ('hidden_size', 'num_layers', 'd_state', 'd_conv', 'expand', 'headdim', 'norm_embedding', 'beta')


def load_golden(path: str) -> dict[str, np.ndarray]:
    """All arrays of a golden model file; DataError where it is not one."""
    try:
        with np.load(Path(path)) as file:
            golden = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f'--golden={path}: cannot be read as an .npz file ({error})') from error
    if 'output/readout' not in golden:
        raise DataError(
            f'--golden={path}: holds no output/readout, so it is not a golden file of the whole model '
            '(ssd4rec_1layer.npz and ssd4rec_2layer.npz are)'
        )
    return golden


def golden_config(golden: dict[str, np.ndarray]) -> ModelConfig:
    return ModelConfig(
        **{key: golden[f'config/{key}'].item() for key in _CONFIG_KEYS}, dropout_prob=0.0, dtype='float64'
    )


def compare(golden: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{quantity: (ours, golden)} in our layouts, from one packed forward and backward pass in float64."""
    torch_params = {k.removeprefix('param/'): v for k, v in golden.items() if k.startswith('param/')}
    lengths = golden['input/lengths'].astype(np.int64)
    stop = np.cumsum(lengths)
    examples = ExampleIndex(
        items=golden['input/items'].astype(np.int32), start=stop - lengths, stop=stop,
        target=golden['input/targets'].astype(np.int32), cut=0,
    )
    shape = choose_step_shape(lengths, targets_per_step=len(lengths), tokens_per_row=max(16, int(lengths.sum())))
    plan = plan_epoch(lengths, shape, seed=0, epoch=0, shuffle=False)
    if plan.num_steps != 1:
        raise UserError(f'the golden histories did not fit one step of {shape}')
    batch = build_step(examples, plan, 0)
    network, _ = init_network(golden_config(golden), int(golden['config/n_items']) - 1, seed=0)
    params = jax.tree.map(jax.numpy.asarray, to_params(torch_params))

    def loss_of(params):
        model = network.bind(params)
        readout = model.readout(batch.items, Layout.of(batch))
        table = model.item_embedding[...]
        loss = softmax_loss_sum(readout, table, batch.targets, batch.lengths > 0) / len(lengths)
        return loss, (readout, scores(readout, table))

    (loss, per_slot), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    real = batch.example_ids >= 0
    order = np.argsort(batch.example_ids[real])
    readout, score = (np.asarray(a)[real][order] for a in per_slot)
    pairs = {
        'output/readout': (readout, golden['output/readout']),
        'output/scores': (score, golden['output/scores']),
        'output/loss': (np.asarray(loss), golden['output/loss']),
    }
    for name in torch_params:
        ours = grads
        for key in path_of(name):
            ours = ours[key]
        pairs[f'grad/{name}'] = (np.asarray(ours), from_torch_layout(name, golden[f'grad/{name}']))
    return pairs


def relative_difference(ours: np.ndarray, golden: np.ndarray) -> float:
    """max|a - b| / max|b|; where b is all zero, 0 if a is exactly zero too and infinity if not."""
    if ours.shape != golden.shape:
        raise UserError(f'shapes differ: {ours.shape} here, {golden.shape} in the golden file')
    difference, scale = np.abs(ours - golden).max(), np.abs(golden).max()
    if scale == 0:
        return 0.0 if difference == 0 else float('inf')
    return float(difference / scale)


def exact_zeros_kept(ours: np.ndarray, golden: np.ndarray) -> bool:
    """True if every element that is exactly zero in the golden array is exactly zero in ours."""
    return not np.any(ours[golden == 0])


def main() -> int:
    # Checked here: a flag that absl requires would be required of every command that a process has imported.
    if _GOLDEN.value is None:
        raise UserError('--golden=FILE.npz must name a golden file, such as tests/golden/ssd4rec_2layer.npz')
    jax.config.update('jax_enable_x64', True)
    failures = 0
    for name, (ours, golden) in compare(load_golden(_GOLDEN.value)).items():
        difference, zeros = relative_difference(ours, golden), exact_zeros_kept(ours, golden)
        good = difference <= _TOLERANCE.value and zeros  # a NaN compares false
        failures += not good
        note = '' if zeros else '  (not zero where the golden array is exactly zero)'
        write_stdout(f'{"ok  " if good else "FAIL"} {difference:9.2e}  {name}{note}\n')
    said = f'{failures} of the quantities above differ by more than {_TOLERANCE.value:g}' if failures else 'all equal'
    write_stdout(f'{said}\n')
    return int(failures > 0)


if __name__ == '__main__':
    run(main)
