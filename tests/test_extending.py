"""Runs the examples of docs/extending.md as they stand there, with the commands that stand there."""
import importlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

from ssd4rec_jax import Recommender, presets, reporter
from ssd4rec_jax.config import plugs
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.data import sources
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model import networks
from ssd4rec_jax.parallel.mesh import device_mesh, place_rows
from ssd4rec_jax.rank.evaluation import Evaluator
from ssd4rec_jax.run.saved_run import load_run
from ssd4rec_jax.train import losses
from ssd4rec_jax.train.program import TrainProgram
from tests.packed import pack
from tests.processes import ROOT, on_one_device

DOC = (Path(__file__).parents[1] / 'docs' / 'extending.md').read_text()
EXAMPLES = {re.match(r'# (\w+)\.py\n', code)[1]: code for code in re.findall(r'```python\n(.*?)```', DOC, re.DOTALL)}
REGISTRIES = (
    plugs.NETWORK_SETTINGS, plugs.LOSS_SETTINGS, networks._MODULES, losses._LOSSES, sources.OFFICIAL,
    presets._REGISTERED,
)


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Makes the examples importable as modules; what they register is removed after the test."""
    for name, code in EXAMPLES.items():
        (tmp_path / f'{name}.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    before, datasets = [dict(registry) for registry in REGISTRIES], list(presets.DATASETS)
    yield tmp_path
    for registry, kept in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(kept)
    presets.DATASETS[:] = datasets
    reporter._REGISTERED.clear()
    for name in EXAMPLES:
        sys.modules.pop(name, None)


# Where a tracker's package would be: it writes down what it is told.
STAND_IN = '''
import json

def told(what):
    with open('told.jsonl', 'a') as file:
        file.write(json.dumps(what) + '\\n')

class Run:
    log = staticmethod(told)
    finish = staticmethod(lambda: told('finished'))

def init(**settings):
    told(settings)
    return Run()
'''


def test_each_example_is_short():
    assert set(EXAMPLES) == {
        'mean_network', 'priced_network', 'smoothed_loss', 'steam_dataset', 'wandb_tracker', 'mlflow_tracker',
    }
    assert all(len(code.splitlines()) < 40 for code in EXAMPLES.values())


def command(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess:
    env = on_one_device(PYTHONPATH=f'{ROOT}:{folder}')
    return subprocess.run(
        [sys.executable, '-m', f'experiments.{name}', *flags], cwd=folder, env=env, capture_output=True, text=True
    )


def test_a_module_is_found_from_the_current_folder_by_the_console_script(modules):
    """-P: as in a console script, the current folder is not where Python looks for modules."""
    script = [sys.executable, '-P', '-c', 'from ssd4rec_jax.commands.main import main; main()', 'settings']
    flags = ['--dataset=ml-100k', '--plug=mean_network', '--set=model.name=mean']
    env = on_one_device(PYTHONPATH=str(ROOT))
    done = subprocess.run([*script, *flags], cwd=modules, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and 'model.name = mean' in done.stdout, done
    elsewhere = subprocess.run([*script, *flags], cwd=ROOT, env=env, capture_output=True, text=True)
    assert elsewhere.returncode == 1 and '--plug=mean_network cannot be imported' in elsewhere.stderr, elsewhere


def write_plays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f'p{player},g{rng.integers(12)},{1000 * player + t}' for player in range(30) for t in range(9)]
    (folder / 'plays.csv').write_text('\n'.join(['player,game,played_at', *rows]) + '\n')


@pytest.mark.slow
def test_a_network_a_loss_and_a_data_set_of_ones_own_are_trained_and_evaluated(modules):
    write_plays(modules)
    (modules / 'wandb.py').write_text(STAND_IN)
    plugs_ = '--plug=mean_network', '--plug=smoothed_loss'
    done = command(
        modules, 'train', *plugs_, '--plug=wandb_tracker', '--report', '--tensorboard', '--plug=steam_dataset',
        '--dataset=steam', f'--data_dir={modules}', '--workdir=run',
        '--set=model.name=mean', '--set=model.hidden_size=8', '--set=train.loss=smoothed', '--set=loss.smoothing=0.2',
        '--set=train.max_epochs=1',
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((modules / 'run/config.json').read_text())
    assert config['model'] == {'name': 'mean', 'hidden_size': 8, 'dropout_prob': 0.2}
    assert config['loss'] == {'smoothing': 0.2} and config['data']['mask_ratio'] == 0.2
    result = json.loads((modules / 'run/result.json').read_text())
    assert result['loss'] == 'smoothed' and result['parameters'] == 13 * 8 + 8 * 8 + 8
    evaluated = command(modules, 'evaluate', *plugs_, '--workdir=run')
    assert evaluated.returncode == 0, evaluated.stderr
    assert {k: v for k, v in json.loads(evaluated.stdout).items() if '@' in k} == pytest.approx(result['test'])
    # The tracker has heard what metrics.jsonl holds; the page and the events are there.
    told = [json.loads(line) for line in (modules / 'told.jsonl').read_text().splitlines()]
    assert told[0] == {'project': 'ssd4rec', 'name': 'run', 'config': {k: config[k] for k in told[0]['config']}}
    records = [json.loads(line) for line in (modules / 'run/metrics.jsonl').read_text().splitlines()]
    assert told[1:-1] == [{f'{r["kind"]}/{name}': value for name, value in r.items()} for r in records]
    assert told[-1] == 'finished' and {r['kind'] for r in records} == {'train', 'valid', 'test'}
    assert f'report: {modules / "run/report.html"}' in done.stdout
    assert f'{result["test"]["NDCG@10"]:.4f}' in (modules / 'run/report.html').read_text()
    assert [file.name.split('.')[0] for file in (modules / 'run/tensorboard').iterdir()] == ['events']
    without = command(modules, 'evaluate', '--workdir=run')
    assert without.returncode == 1 and 'is unknown' in without.stderr and '--plug=MODULE' in without.stderr


@pytest.mark.slow
def test_a_network_reads_the_features_of_the_events(modules):
    """The readouts of a run of commands are those of the formula, by hand from the log's own prices."""
    rng = np.random.default_rng(0)
    rows = [(f'p{p}', f'g{rng.integers(9)}', 100 * p + t, [3.5, ''][t % 4 == 3]) for p in range(20) for t in range(8)]
    lines = [','.join(map(str, row)) for row in [('user', 'item', 'time', 'price'), *rows]]
    (modules / 'plays.csv').write_text('\n'.join(lines) + '\n')
    network = '--plug=priced_network', '--set=model.name=priced', '--set=model.hidden_size=4'
    log = '--dataset=interactions', f'--data_dir={modules}/plays.csv', '--set=train.max_epochs=1', '--workdir=run'
    done = command(modules, 'train', *network, *log)
    assert done.returncode == 1 and 'the network reads the feature price and the prepared data has none' in done.stderr
    done = command(modules, 'train', *network, *log, '--features=price')
    assert done.returncode == 0, done.stderr
    evaluated = command(modules, 'evaluate', '--plug=priced_network', '--workdir=run')
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((modules / 'run/result.json').read_text())
    assert {k: v for k, v in json.loads(evaluated.stdout).items() if '@' in k} == pytest.approx(result['test'])
    importlib.import_module('priced_network')
    saved = load_run(modules / 'run')
    params = jax.tree.map(np.asarray, saved.params)
    ranks = Evaluator(saved.config, saved.dataset, saved.network, saved.mesh, 'test').evaluate(
        saved.params, longest_list=3, seen_out=False
    )
    recommended = Recommender.load(modules / 'run').recommend(users='all', k=3)
    for user in range(20):
        own = rows[8 * user:8 * user + 8]
        numbers = [saved.dataset.item_ids.tolist().index(item) + 1 for _, item, _, _ in own]
        seen = [
            params['item_embedding'][n] + (params['price_embedding'][1] if price == '' else
                                           np.log1p(price) * params['price_embedding'][0])
            for n, (*_, price) in zip(numbers, own, strict=True)
        ]
        by_all = np.mean(seen, axis=0) @ params['item_embedding'][1:].T
        best = [saved.dataset.item_ids.tolist()[at] for at in np.argsort(-by_all, kind='stable')[:3]]
        assert recommended.filter(pl.col('user') == f'p{user}')['item'].to_list() == best
        scores = np.mean(seen[:-1], axis=0) @ params['item_embedding'][1:].T
        at = saved.dataset.user_ids.tolist().index(f'p{user}')
        assert ranks.lists[at].tolist() == (np.argsort(-scores, kind='stable')[:3] + 1).tolist()
        assert ranks.ranks[at] == 1 + (scores > scores[numbers[-1] - 1]).sum()
    refused = command(modules, 'recommend', '--plug=priced_network', '--workdir=run', '--history=g1,g2')
    assert refused.returncode == 1 and 'these histories have only items' in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['full', 'sampled'])
def test_a_network_of_ones_own_trains_alike_on_a_table_split_over_devices(modules, loss):
    importlib.import_module('mean_network')
    config = apply_overrides(presets.default_config('ml-100k'), [
        'model.name=mean', 'model.hidden_size=8', 'model.dropout_prob=0', f'train.loss={loss}', 'train.num_negatives=6',
    ])
    rows, targets = [[(row, [1, 2, 3 + row])] for row in range(4)], dict.fromkeys(range(4), 5)
    batch = pack(rows, tokens=8, segments=2, targets=targets)
    losses_ = []
    for shards in (1, 4):
        program = TrainProgram(config, 12, device_mesh(jax.devices()[:shards], shards), every_prefix=False)
        state, args = program.create_state(), program.constants(np.ones(13, np.int64))
        one = []
        for _ in range(2):
            state, value = program.step(state, place_rows(batch, program.mesh, 4), np.uint32(0), np.uint32(0), *args)
            one.append(float(value))
        losses_.append(one)
    np.testing.assert_allclose(losses_[0], losses_[1], rtol=1e-5)
    assert losses_[0][0] != losses_[0][1]


def test_the_loss_of_ones_own_is_what_its_formula_says_and_refuses_a_split_table(modules):
    importlib.import_module('smoothed_loss')
    rng = np.random.default_rng(0)
    readout, table = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    targets, real = rng.integers(1, 7, 5), np.array([1, 1, 0, 1, 0], bool)
    config = apply_overrides(presets.default_config('ml-100k'), ['train.loss=smoothed', 'loss.smoothing=0.3'])
    loss = losses.make_loss(config.train, config.loss, 6)
    ours = loss.of(np.where(real[:, None], readout, np.nan), table, targets, real, shard=None)
    scores = readout @ table.T
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    by_hand = sum(-0.7 * log_p[i, targets[i]] - 0.3 * log_p[i].mean() for i in range(5) if real[i])
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5)
    with pytest.raises(ConfigError, match='smoothed works on a whole item table alone: train with --model_shards=1'):
        losses.make_loss(config.train, config.loss, 6, model_shards=2)


def test_mlflow_is_told_every_figure_at_its_step(modules, monkeypatch):
    calls = []
    stand_in = types.SimpleNamespace(**{
        name: lambda *given, name=name, **named: calls.append((name, *given, *named.values()))
        for name in ('start_run', 'log_dict', 'log_metrics', 'end_run')
    })
    monkeypatch.setitem(sys.modules, 'mlflow', stand_in)
    importlib.import_module('mlflow_tracker')
    (tracker,) = reporter.registered_reporters(modules / 'run', {'dataset': 'steam'})
    tracker.logged({'kind': 'valid', 'step': 7, 'NDCG@10': 0.25, 'ssd_implementation': 'xla'})
    tracker.close()
    assert calls == [
        ('start_run', 'run'), ('log_dict', {'dataset': 'steam'}, 'settings.json'),
        ('log_metrics', {'valid/step': 7, 'valid/NDCG at 10': 0.25}, 7), ('end_run',),
    ]


def test_names_that_nobody_registered_are_refused():
    config = presets.default_config('ml-100k')
    said = r'model.name=meen is unknown\. Known: ssd4rec.*--plug=MODULE'  # nothing is near
    with pytest.raises(ConfigError, match=said):
        apply_overrides(config, ['model.name=meen'])
    with pytest.raises(ConfigError, match=r"train.loss=ful is unknown; did you mean 'full'"):
        apply_overrides(config, ['train.loss=ful'])
