"""The benchmark measures the same function in both forms, and its arithmetic is right."""
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import pallas_kernels.bench.clock as clock
from experiments.bench import long, softmax, training
from experiments.bench.training import Forms, TrainStep
from experiments.logs import QUANTILES, SHAPES, equal_histories, random_log
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.examples import train_examples, valid_examples
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.ranker import Ranker
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset

ITEMS = 30
CONFIG = RunConfig('interactions', dataclasses.replace(MODEL, num_layers=2), DATA, TRAIN)


def benchmark(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'experiments.benchmark', *flags], cwd=Path(__file__).parents[2], capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def forms():
    forms, rng = Forms.of(CONFIG, ITEMS), np.random.default_rng(0)
    return forms._replace(
        params=jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(np.float32), forms.params)
    )


@pytest.mark.slow
def test_both_forms_make_the_same_steps(forms):
    """Masking and dropout are on, and the second loss depends on the first update."""
    examples = train_examples(tiny_dataset())
    steps = [TrainStep(network, forms.params, CONFIG, examples) for network in (forms.plain, forms.ours)]
    losses = [[step() for _ in range(3)] for step in steps]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert len(set(losses[1])) == 3


@pytest.mark.slow
def test_both_forms_give_the_same_ranks(forms):
    examples = valid_examples(tiny_dataset())
    plain, ours = (
        Ranker(network, device_mesh(), examples, targets_per_step=64, tokens_per_row=128).ranks(forms.params, examples)
        for network in (forms.plain, forms.ours)
    )
    np.testing.assert_array_equal(plain, ours)
    assert len(set(ours.tolist())) > 10


@pytest.mark.slow
def test_figures_of_a_step(forms):
    examples = train_examples(tiny_dataset())
    step = TrainStep(forms.ours, forms.params, CONFIG, examples)
    figures = step.figures(0.5)
    epoch = 0.5 * step.plan.num_steps
    assert figures['epoch_seconds'] == epoch
    assert figures['targets_per_second'] == pytest.approx(len(examples) / epoch)
    assert figures['tokens_per_second'] == pytest.approx(examples.lengths.sum() / epoch)
    # Parameters and Adam's two moments.
    assert figures['memory_bytes'] > 3 * sum(w.nbytes for w in jax.tree.leaves(forms.params))


@pytest.mark.slow
def test_long_histories_come_in_steps_of_as_many_tokens(monkeypatch):
    monkeypatch.setattr(long, 'TOKENS', 256)
    monkeypatch.setattr(long, 'LENGTHS', (64,))
    monkeypatch.setattr(training, 'device_mesh', lambda: device_mesh(jax.devices()[:1]))
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, rows_per_step=0))
    rows = long.measure_long(config, 1)
    assert [(row['layers'], row['length']) for row in rows] == [(1, 64), (2, 64)]
    for row in rows:
        for figures in (row['plain'], row['ours']):
            assert figures['tokens_per_second'] * figures['step_seconds'] == pytest.approx(256)
            assert figures['targets_per_second'] * figures['step_seconds'] == pytest.approx(256 / row['length'])


def test_the_softmax_is_measured_whole_and_in_chunks_where_it_fits(monkeypatch):
    for name, value in {'CATALOGUES': (40, 5000), 'TARGETS': 16, 'WIDTH': 8}.items():
        monkeypatch.setattr(softmax, name, value)
    rows = softmax.measure_softmax(1)
    assert [(row['items'], row['form']) for row in rows] == [
        (40, 'whole'), (40, 'chunked'), (5000, 'whole'), (5000, 'chunked')
    ]
    assert all(row['seconds'] > 0 for row in rows)
    assert rows[3]['temporary_bytes'] < rows[2]['temporary_bytes']
    monkeypatch.setattr(softmax, '_memory', lambda: 0)
    assert [row['seconds'] for row in softmax.measure_softmax(1)] == [None] * 4


def test_calls_take_turns_and_the_first_is_not_timed(monkeypatch):
    now, order = [0.0], []
    costs = {'a': iter([100, 1, 2, 9]), 'b': iter([200, 5, 4, 6])}
    monkeypatch.setattr(clock.time, 'perf_counter', lambda: now[0])

    def call(name):
        order.append(name)
        now[0] += next(costs[name])

    assert clock.median_seconds({name: (lambda name=name: call(name)) for name in costs}, 3) == {'a': 2, 'b': 5}
    assert order == ['a', 'b'] * 4


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this platform pins no threads')
def test_one_core_is_given_back():
    before = os.sched_getaffinity(0)
    with clock.one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize('name', SHAPES)
def test_a_random_log_has_the_sizes_of_the_real_one(name):
    shape = SHAPES[name]
    log = random_log(name, shape)
    assert log.num_users == shape.users and log.num_items == shape.items
    assert log.items.min() == 1 and log.items.max() == shape.items
    found = np.quantile(log.lengths, QUANTILES[1:-2])
    np.testing.assert_allclose(found, shape.lengths[1:-2], rtol=0.12)
    assert log.lengths.min() >= shape.lengths[0] and log.lengths.max() <= shape.lengths[-1]


def test_equal_histories():
    examples = valid_examples(equal_histories(37, 5, 9))
    assert examples.lengths.tolist() == [37] * 5


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(tmp_path):
    done = benchmark(f'--json={tmp_path}/gone/out.json')
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr == f'error: --json={tmp_path}/gone/out.json cannot be written: there is no such folder\n'


@pytest.mark.slow
def test_the_command_prints_its_tables_and_writes_what_it_prints(tmp_path):
    small = ['hidden_size=8', 'headdim=8', 'd_state=4']
    done = benchmark(
        '--preset=ml-100k', f'--json={tmp_path / "out.json"}', '--repeats=1', '--plain_users=40',
        '--set=train.targets_per_step=64', *(f'--set=model.{change}' for change in small),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / 'out.json').read_text())
    train, evaluation, loader = figures['train'], figures['evaluation'], figures['loader']
    for form in ('plain', 'prefix', 'one_pass'):
        assert f'{train[form]["targets_per_second"]:,.0f}' in done.stdout
    for other in ('plain', 'prefix'):
        ratio = train['one_pass']['targets_per_second'] / train[other]['targets_per_second']
        assert f'{ratio:.2f} x' in done.stdout
    assert 0 <= train['waiting_share'] < 1
    assert (evaluation['plain']['users'], evaluation['ours']['users']) == (40, 943)
    assert loader['loader']['examples'] == train_examples(random_log('ml-100k', SHAPES['ml-100k'])).num_targets.sum()
    assert figures['preset'] == 'ml-100k' and figures['jax'] == jax.__version__
