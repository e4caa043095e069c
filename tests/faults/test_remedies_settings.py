"""Ways out of settings, flags and what is not installed: provoked, gone, and then it works."""
import dataclasses
import functools
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import jax
import numpy as np
import polars as pl
import pytest

from ssd4rec_jax import Recommender
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.plugs import LOSS_SETTINGS, NoSettings
from ssd4rec_jax.config.run import flat
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.data.dataset import open_dataset, with_split
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.sources import FrameSource
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.parallel import out_of_memory
from ssd4rec_jax.presets import default_config, preset_config
from ssd4rec_jax.rank.evaluation import Evaluator
from ssd4rec_jax.run.saved_run import load_run
from ssd4rec_jax.train import losses
from ssd4rec_jax.train.optimizer import learning_rate_schedule
from tests.faults.inside import TINY, Done, call
from tests.faults.messages import ROOT
from tests.faults.remedies import (
    EVALUATE,
    HERE,
    LOG,
    PARTS,
    SPLIT,
    TESTED,
    refused,
    rows,
    says,
    tries,
    works,
    write_files,
)
from tests.processes import on_one_device


def settings(*flags: str) -> Done:
    return call('settings', *flags, folder=ROOT)


ADAMW = 'train.weight_decay needs train.optimizer=adamw; plain Adam has none'
WARMUP = 'train.schedule=warmup_cosine needs train.decay_steps={} above train.warmup_steps={}'


@tries(' `ssd4rec settings` lists all of them', ADAMW, WARMUP)
def test_settings_that_belong_together():
    refused(settings('--set=train.weight_decay=0.1'), ADAMW)
    works(settings('--set=train.weight_decay=0.1', '--set=train.optimizer=adamw'))
    refused(settings('--set=train.schedule=warmup_cosine', '--set=train.warmup_steps=9'), WARMUP)
    works(settings('--set=train.schedule=warmup_cosine', '--set=train.warmup_steps=9', '--set=train.decay_steps=10'))
    refused(settings('--set=nothing.resembles=1'), ' `ssd4rec settings` lists all of them')
    listed = re.findall(r'(?m)^(\w+\.\w+) = (\S*)', works(settings('--dataset=interactions')).out)
    assert {key for key, _ in listed} == set(flat(default_config('interactions'))) - {'dataset'}
    works(settings('--dataset=interactions', *(f'--set={key}={value.strip(chr(39))}' for key, value in listed)))


TWO_PASSES = 'train.objective={} would not be exact: {}; set train.objective=prefix'
SAMPLED = 'model.table_dtype=bfloat16 needs train.loss=sampled'
ROWS = 'data.rows_per_step={} is more than the {} histories that there are to train on: lower it'
X64 = 'model.dtype=float64 needs JAX_ENABLE_X64=1'


@pytest.mark.slow
@tries(TWO_PASSES, SAMPLED, ROWS, X64)
@pytest.mark.parametrize('said, wrong, right', [
    (TWO_PASSES, ('train.objective=one_pass', 'model.num_layers=2'), ('train.objective=prefix', 'model.num_layers=2')),
    (SAMPLED, ('model.table_dtype=bfloat16', 'train.loss=full'), ('model.table_dtype=bfloat16', 'train.loss=sampled')),
    (ROWS, ('data.rows_per_step=1000',), ('data.rows_per_step=16',)),
    (X64, ('model.dtype=float64',), ('model.dtype=float64',)),
])
def test_a_setting_that_this_run_cannot_have(finished, tmp_path, request, said, wrong, right):
    def train(settings: tuple[str, ...]) -> Done:
        log = f'--data_dir={finished}/log.csv'
        return call('train', *TINY, log, *(f'--set={s}' for s in settings), '--set=train.max_epochs=1', folder=tmp_path)

    refused(train(wrong), said)
    if said == X64:
        request.getfixturevalue('x64')
    works(train(right))


CHEAPER, LONGEST = '; --set={} would read {}, {} times less', 'Nothing is cut; data.max_history would cut'


@pytest.mark.slow
@tries(CHEAPER, LONGEST)
def test_the_setting_that_makes_an_epoch_cheaper(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f'{u},{i},{t}' for u in range(8) for t, i in enumerate(rng.integers(0, 9, 700 if u == 0 else 6))]
    (tmp_path / 'log.csv').write_text('\n'.join(['user_id,item_id,timestamp', *lines]) + '\n')
    train = functools.partial(
        call, 'train', *TINY, '--set=train.max_epochs=1', '--set=data.tokens_per_row=64',
        '--set=train.targets_per_step=512', folder=tmp_path,
    )
    done = works(train())
    setting, tokens = re.search(r'--set=(\S+) would read ([0-9,]+), ', done.out).groups()
    assert says(LONGEST, done.err)
    again = works(train(f'--set={setting}', '--restart'), CHEAPER)
    assert f'an epoch reads {tokens} tokens' in again.out
    works(train('--set=data.max_history=20', '--restart'), LONGEST)


MEMORY = 'out of memory in {}: lower train.targets_per_step (fewer tokens a step), then model.hidden_size; {}'
DIVERGED = 'Lower train.learning_rate or set train.clip_norm'
NAN_SCORES = 'The training diverged: lower train.learning_rate'


@pytest.mark.slow
@tries(MEMORY)
@pytest.mark.parametrize('lower, available', [
    ('model.hidden_size=8', 10 << 20), ('train.targets_per_step=8', 32 << 20),
])
def test_less_memory_is_needed_with_the_lower_setting(finished, tmp_path, monkeypatch, lower, available):
    train = functools.partial(
        call, 'train', *TINY, f'--data_dir={finished}/log.csv', '--set=model.hidden_size=128',
        '--set=train.targets_per_step=512', '--set=train.max_epochs=1', folder=tmp_path,
    )
    monkeypatch.setattr(out_of_memory, 'available_bytes', lambda: available)
    refused(train(), MEMORY)
    works(train(f'--set={lower}'))


@pytest.mark.slow
@tries(DIVERGED, NAN_SCORES)
def test_a_run_that_diverged(root):
    saved = load_run(root / 'run')
    evaluator = Evaluator(saved.config, saved.dataset, saved.network, saved.mesh, 'test')
    broken = jax.tree.map(lambda leaf: leaf * np.nan, saved.params)
    with pytest.raises(UserError, match=NAN_SCORES):
        evaluator.ranker.metrics(broken, evaluator.examples)
    train = functools.partial(call, 'train', *TINY, '--restart', '--set=train.objective=prefix', folder=root)
    refused(train('--set=train.learning_rate=1e30'), DIVERGED)
    works(train('--set=train.learning_rate=1e-3'))
    works(call(*EVALUATE, folder=root))


# ---- the program and its surroundings


@pytest.mark.slow
@tries('read it with the same --features')
def test_what_the_recommender_asks_for(root):
    recommender = Recommender.load(root / 'run')
    recommender.save(root / 'model', histories=False)
    alone = Recommender.load(root / 'model')
    said = 'give histories of items instead of users (in Python histories=[[item, ...], ...]'
    with pytest.raises(UserError, match=re.escape(said)):
        alone.recommend(users=[1])
    assert len(alone.recommend(histories=[[1, 2]], k=3)) == 3
    log = root / 'priced.csv'
    log.write_text(rows('user_id,item_id,timestamp,price', line='{u},{i},{t},{n}'))
    more = pl.DataFrame({'user_id': [0, 1], 'item_id': [1, 2], 'timestamp': [1_700_000_000] * 2, 'price': [1, 2]})
    priced, unpriced = (
        FrameSource(more, TableOptions(features=features)).read() for features in (('price',), ())
    )
    works(call('prepare', '--dataset=interactions', '--data_dir=priced.csv', '--features=price', '--output=priced',
               folder=root))
    dataset = open_dataset(root / 'priced')
    assert dataset is not None
    with pytest.raises(UserError, match='read it with the same --features'):
        extended(dataset, unpriced)
    assert extended(dataset, priced).num_interactions == 74


UNSHOWN = "stdout's encoding, {}, cannot show {}: set PYTHONIOENCODING=utf-8"
HELP, NO_FLAG = 'See {} --help', 'there is no flag --{}{}'
EVERY = 'unexpected argument {}: every setting is a --flag=value'


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = on_one_device(**environment)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, encoding='utf-8')


@tries(UNSHOWN)
def test_an_id_that_the_terminal_cannot_show():
    program = 'from ssd4rec_jax.show.output import write_stdout; write_stdout("ж")'
    assert says(UNSHOWN, python('-c', program, PYTHONIOENCODING='latin-1').stderr)
    assert python('-c', program, PYTHONIOENCODING='utf-8').stdout == 'ж'


@tries(HELP, NO_FLAG, EVERY)
def test_the_help_that_a_wrong_flag_leads_to():
    done = python('-m', 'experiments.settings', '--datasett=kuairand')
    assert done.returncode == 2 and says(NO_FLAG, done.stderr) and says(HELP, done.stderr)
    found = re.search(r'See python (-m .*)', done.stderr)
    assert found is not None
    shown = python(*found[1].split())
    assert shown.returncode == 0 and '--dataset=' in shown.stdout
    done = python('-m', 'experiments.settings', 'dataset=kuairand')
    assert done.returncode == 1 and says(EVERY, done.stderr)
    assert python('-m', 'experiments.settings', '--dataset=kuairand').returncode == 0


GOLDEN = '--golden=FILE.npz must name a golden file, such as tests/golden/ssd4rec_2layer.npz'


@pytest.mark.slow
@tries(GOLDEN)
def test_the_golden_file_that_is_named(x64):  # which the command sets, and the fixture sets back
    refused(call('parity', folder=ROOT), GOLDEN)
    works(call('parity', f'--golden={GOLDEN.split()[-1]}', folder=ROOT))


THREE_FILES = (
    'data.split=files needs a log in three files: name them with --train_file, --valid_file and --test_file, or the '
    'folder that holds them with --data_dir'
)


@tries(THREE_FILES)
def test_a_log_in_one_file_has_no_parts(tmp_path):
    write_files(tmp_path, {**PARTS, 'log/log.csv': LOG})
    works(call('prepare', '--dataset=interactions', '--data_dir=log/log.csv', '--output=one', folder=tmp_path))
    dataset = open_dataset(tmp_path / 'one')
    assert dataset is not None
    with pytest.raises(UserError) as error:
        with_split(dataset, DataConfig(split='files'))
    assert says(THREE_FILES, str(error.value))
    works(call('prepare', '--dataset=interactions', '--data_dir=.', SPLIT, folder=tmp_path))


@pytest.mark.slow
@tries(' (by default; --workdir names another)')
def test_the_workdir_by_default(finished, tmp_path):
    said, flags = ' (by default; --workdir names another)', [flag for flag in TINY if not flag.startswith('--workdir')]
    train = functools.partial(call, 'train', *flags, f'--data_dir={finished}/log.csv', folder=tmp_path)
    assert says(said, works(train()).out) and (tmp_path / 'runs/interactions/result.json').exists()
    works(train('--workdir=another'), said)
    assert (tmp_path / 'another/result.json').exists()


NOT_MEASURED = '--preset={}: nothing was measured for --dataset={}; take --preset=auto'
MEASURED = "the best that were measured for such a log; --preset=published takes the paper's"
UNSEEN = 'train.loss={} does not add the seen-item term: train with --set=model.seen_bias=false'
ENDLESS = 'train.schedule=warmup_cosine needs train.decay_steps here, where there are no epochs'


@tries(NOT_MEASURED, MEASURED)
def test_presets(finished):
    def preset(dataset: str, name: str | None) -> str:
        return preset_config(dataset, name, lambda _: open_dataset(prepared), lambda: 'cpu')[1]

    prepared, = (finished / 'data/interactions').glob('prepared-*/')
    with pytest.raises(UserError) as error:
        preset('interactions', 'best')
    assert says(NOT_MEASURED, str(error.value)) and preset('interactions', 'auto')
    assert says(MEASURED, preset('kuairand', None)) and preset('kuairand', 'published') == 'settings: as published'


@tries(UNSEEN, ENDLESS)
def test_what_a_loss_or_a_schedule_of_ones_own_cannot_have(monkeypatch):
    monkeypatch.setitem(LOSS_SETTINGS, 'own', NoSettings)
    config = TrainConfig(loss='own')
    monkeypatch.setitem(losses._LOSSES, 'own', losses.Loss(lambda *_, settings: None, adds_seen=False))
    with pytest.raises(UserError) as error:
        losses.make_loss(config, NoSettings(), 9, has_seen=True)
    assert says(UNSEEN, str(error.value)) and losses.make_loss(config, NoSettings(), 9, has_seen=False)
    falling = TrainConfig(schedule='warmup_cosine')
    with pytest.raises(UserError) as error:
        learning_rate_schedule(falling)
    assert says(ENDLESS, str(error.value))
    assert float(learning_rate_schedule(dataclasses.replace(falling, decay_steps=10))(10)) == 0


EXTRAS = {  # message: the modules that are missing without the extra
    'this machine has an NVIDIA GPU but JAX runs on the CPU: pip install "ssd4rec-jax[gpu]"': ('jax_cuda13_plugin',),
    'this machine has a TPU but JAX runs on the CPU: pip install "ssd4rec-jax[tpu]"': ('libtpu',),
    'compiling for a TPU needs libtpu: pip install "ssd4rec-jax[tpu]"': ('libtpu',),
    "is compressed with zstd, which is read with pyarrow: pip install 'ssd4rec-jax[frames]', or decompress it first":
        ('pyarrow',),
    'a frame of {} needs it and pyarrow: pip install "ssd4rec-jax[frames]"': ('pandas', 'pyarrow'),
    "a search needs Optuna: pip install 'ssd4rec-jax[tune]'": ('optuna',),
    "a picture needs matplotlib: pip install 'ssd4rec-jax[plots]'": ('matplotlib',),
}
TESTED.update(EXTRAS)


@pytest.mark.parametrize('said', EXTRAS)
def test_the_extra_that_is_named_brings_the_module(said):
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extra = re.search(r'\[(\w+)\]', said)
    assert extra is not None
    brought = set()
    for requirement in project['optional-dependencies'][extra[1]]:
        name, _, more = re.fullmatch(r'([\w-]+)(\[(\w+)\])?.*', requirement).groups()
        brought.add(name)
        if more:  # an extra of another project
            brought |= {
                re.match(r'[\w-]+', line)[0] for line in importlib.metadata.requires(name)
                if f'extra == "{more}"' in line.replace("'", '"')
            }
    assert set(EXTRAS[said]) <= {name.replace('-', '_') for name in brought}


def test_without_an_extra_the_sentence_is_said_and_the_other_way_works(tmp_path, monkeypatch):
    import pyarrow
    with pyarrow.CompressedOutputStream(str(tmp_path / 'log.csv'), 'zstd') as stream:
        stream.write(LOG.encode())
    expected = works(call('prepare', *HERE, '--output=with', folder=tmp_path)).out
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'pyarrow', None)
        zstd = next(said for said in EXTRAS if 'zstd' in said)
        refused(call('prepare', *HERE, '--output=without', folder=tmp_path), zstd)
        write_files(tmp_path, {'log.csv': LOG})
        decompressed = works(call('prepare', *HERE, '--output=without', folder=tmp_path)).out
    assert json.loads(decompressed)['users'] == json.loads(expected)['users']
