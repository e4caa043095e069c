"""The compile_pod command, on TPU topologies that need not exist; nothing is simulated."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    '--tokens_per_row=128', '--set=model.hidden_size=64', '--set=model.num_layers=1',
    '--set=model.ssd_implementation=xla',
)


def run(*args, code=None):
    start = ['-c', code] if code else ['-m', 'experiments.compile_pod']
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    return subprocess.run(
        [sys.executable, *start, *args], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def report_of(tmp_path, *args, returncode=0):
    """(what the command prints, what it writes)."""
    result = run(f'--json={tmp_path / "pod.json"}', *args)
    assert result.returncode == returncode, result.stderr
    return result.stdout, json.loads((tmp_path / 'pod.json').read_text())


@pytest.mark.slow
def test_a_small_step_on_four_chips(tmp_path):
    text, figures = report_of(tmp_path, '--topology=v5e:2x2', '--dataset=kuairand', '--model_shards=2', *SMALL)
    assert 'kuairand on v5e:2x2: 4 chips, 2 along model' in text and '\n  FITS: ' in text
    assert 'assumed catalogue: 7,111 items' in text and 'a step takes ' in text
    assert figures['shape']['rows'] == 4 and figures['shape']['tokens'] == 128

    # A chip holds half of the item table of 7,112 x 64 and everything else, each with Adam's two moments.
    table = 7112 // 2 * 64 * 4
    assert figures['memory']['state'] > 3 * table
    assert figures['memory']['arguments'] >= figures['memory']['state']
    assert figures['memory']['fits'] and figures['memory']['needed'] < figures['memory']['available']
    # A step reads and writes at least the state that a device holds.
    assert figures['hbm_bytes'] >= 1.9 * figures['memory']['state']

    by_axes = {(c['kind'], c['over']): c for c in figures['collectives']}
    # The table's gradient is summed along data, the other parameters' along both, and the items' vectors are fetched.
    assert by_axes['all-reduce', 'along data']['payload_bytes'] == pytest.approx(table, rel=0.01)
    others = figures['memory']['state'] / 3 - table
    assert by_axes['all-reduce', 'along data and model']['payload_bytes'] == pytest.approx(others, rel=0.01)
    assert ('all-gather', 'along model') in by_axes

    p = figures['projected']
    assert p['compute'] == figures['work']['mxu'] / 197e12 and p['hbm'] == figures['hbm_bytes'] / 819e9
    assert p['ici'] == pytest.approx(sum(c['seconds'] for c in figures['collectives'])) and p['ici'] > 0
    assert p['overlapped'] == max(p['compute'], p['hbm'], p['ici'])
    assert figures['work']['unknown_loops'] == figures['unknown_loops'] == 0


@pytest.mark.parametrize('args, message', [
    (['--topology=v5e:3x3x3'], '--topology=v5e:3x3x3 is not one that libtpu knows'),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        (['--topology=v4:2x2x1'], "--topology=v4:2x2x1: the published rates of 'v4' are not known here"),
        (['--topology=v5e:2x2', '--model_shards=3'], '--model_shards=3 does not divide the 4 devices'),
        (['--dataset=synthetic'], '--dataset=synthetic has no published size'),
        (['--json=/nowhere/pod.json'], '--json=/nowhere/pod.json cannot be written'),
    )),
])
def test_errors_are_one_line(args, message):
    result = run(*args)
    assert (result.returncode, result.stdout) == (1, '')
    assert result.stderr.startswith(f'error: {message}') and result.stderr.count('\n') == 1


def test_libtpu_is_asked_for():
    result = run('--topology=v5e:2x2', code=(
        "import runpy, sys; sys.modules['libtpu'] = None; "
        "runpy.run_module('experiments.compile_pod', run_name='__main__')"
    ))
    assert result.returncode == 1
    assert result.stderr == 'error: compiling for a TPU needs libtpu: pip install "ssd4rec-jax[tpu]"\n'


@pytest.mark.slow
@pytest.mark.parametrize('shards, fits', [(1, False), (4, True)])
def test_a_catalogue_of_millions_fits_where_chips_share_it(tmp_path, shards, fits):
    """4.4 million items with Adam's moments are 12.5 GiB."""
    text, figures = report_of(
        tmp_path, '--topology=v5e:2x2', '--dataset=kuairand-1k', f'--model_shards={shards}', *SMALL[:1], *SMALL[2:],
        '--set=train.loss=full', returncode=0 if fits else 1,
    )
    assert figures['memory']['fits'] is fits
    assert ('DOES NOT FIT: ' in text) is not fits
    assert figures['memory']['state'] == pytest.approx(3 * 4_369_954 * 256 * 4 / shards, rel=0.01)
    assert ('projected' in figures) is fits
    if not fits:
        assert 'the compiler: Ran out of memory' in text
        assert figures['memory']['needed'] > figures['memory']['available']


@pytest.mark.slow
def test_a_pod_of_256(tmp_path):
    text, figures = report_of(
        tmp_path, '--topology=v5e:16x16', '--dataset=kuairand', '--model_shards=16', '--tokens_per_row=128',
        '--set=model.ssd_implementation=xla',
    )
    assert '256 chips, 16 along model' in text and figures['shape']['rows'] == 256
    sizes = {c['group'] for c in figures['collectives']}
    assert sizes == {16, 256}


@pytest.mark.slow
def test_a_catalogue_of_32_million_items_on_a_pod_of_256(tmp_path):
    text, figures = report_of(
        tmp_path, '--topology=v5e:16x16', '--dataset=kuairand-27k', '--model_shards=16', '--tokens_per_row=128',
        '--rows_per_device=1', '--set=model.ssd_implementation=xla', '--set=train.num_negatives=256',
    )
    assert 'softmax sampled from 32,038,725 items, 256 uniform negatives a step' in text
    # A chip holds a sixteenth of the table in bfloat16, one float32 per row, and the network with Adam's moments.
    table = -(-32_038_726 // 16) * (256 * 2 + 4)
    assert table < figures['memory']['state'] < 1.04 * table
    # Nothing else has the size of the table, and chips send one another only rows that the step touches.
    rows = 128 + 256 + figures['shape']['segments'] + 1
    assert figures['memory']['needed'] < 1.5 * table
    sent = {c['kind']: c['payload_bytes'] for c in figures['collectives'] if c['over'] == 'along data'}
    assert sent['all-gather'] < 1.1 * 16 * (rows + 16) * (256 + 1) * 4
