"""evaluate, recommend and the ways a training command treats a workdir that is not empty."""
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import save_dataset
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.plain import plain_hidden
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.run.saved_run import load_run, write_config
from tests.packed import pack
from tests.tiny import DATA, MODEL, TRAIN, StopAfter, history, tiny_dataset, trainer_in

ITEMS, USERS = 30, 60


def command(name: str, *flags: str, cwd: Path) -> subprocess.CompletedProcess:
    env = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, '-m', f'experiments.{name}', *flags], cwd=cwd, env=env, capture_output=True, text=True
    )


def refused(done: subprocess.CompletedProcess, *texts: str) -> None:
    assert done.returncode == 1 and done.stderr.startswith('error: ') and 'Traceback' not in done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with the prepared data, `done`, a finished run on it, and `running`, one stopped in its second epoch."""
    enable_compilation_cache()
    root = tmp_path_factory.mktemp('root')
    dataset = tiny_dataset()
    save_dataset(dataset, root / 'prepared')
    config = RunConfig('interactions', MODEL, DATA, TRAIN)
    trainer_in(root / 'done').run()
    steps = max(json.loads(line)['step'] for line in (root / 'done/metrics.jsonl').read_text().splitlines()) // 2
    trainer_in(root / 'running', stop_requested=StopAfter(steps + 1)).run()
    for name in ('done', 'running'):
        write_config(RunFolder(root / name), config, root / 'prepared')
    return root


@pytest.mark.slow
def test_a_run_without_histories_reads_them_where_its_data_lies_prepared(root, tmp_path):
    shutil.copytree(root / 'done', run := tmp_path / 'run')
    saved = load_run(run)
    params = saved.network.whole(saved.params)
    save_model(run / 'model', saved.config, saved.dataset, params, step=saved.step, best_epoch=1, histories=False)
    here = load_run(run)
    assert here.dataset.num_users == USERS and here.step == saved.step
    write_config(RunFolder(run), saved.config, tmp_path / 'gone')
    moved = load_run(run)
    assert (moved.dataset.num_users, moved.dataset.num_items) == (0, ITEMS)
    np.testing.assert_array_equal(moved.item_counts, here.item_counts)


@pytest.fixture(scope='module')
def scores(root) -> np.ndarray:
    """[users, items + 1] of every user's whole history, unpacked, by the plain algorithm; item 0 at -inf."""
    loaded = load_run(str(root / 'done'))
    histories = [history(tiny_dataset(), user) for user in range(USERS)]
    batch = pack([[(e, list(h))] for e, h in enumerate(histories)], tokens=16, segments=1)
    hidden = np.asarray(jax.jit(lambda p: plain_hidden(loaded.network.bind(p), batch.items, Layout.of(batch)))(
        loaded.params
    ))
    ends = np.array([len(h) - 1 for h in histories])
    scores = hidden[np.arange(USERS), ends] @ np.asarray(loaded.params['item_embedding']).T
    scores[:, 0] = -np.inf
    return scores


def rows(done: subprocess.CompletedProcess) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [line.split('\t') for line in done.stdout.splitlines()]


@pytest.mark.parametrize('flags, split', [(['--split=valid'], 'valid'), ([], 'test')])
def test_evaluate_gives_the_results_metrics_from_any_folder(root, flags, split):
    (root / 'elsewhere').mkdir(exist_ok=True)
    done = command('evaluate', '--workdir=../done', *flags, cwd=root / 'elsewhere')
    assert done.returncode == 0, done.stderr
    result = json.loads((root / 'done/result.json').read_text())
    assert json.loads(done.stdout) == {
        'dataset': 'interactions', 'split': split, 'best_epoch': result['best_epoch'], **result[split],
    }


def test_evaluate_during_training_ranks_with_the_best_epoch_so_far(root):
    assert not (root / 'running/result.json').exists()
    with open(root / 'running/.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = command('evaluate', '--workdir=running', '--split=valid', cwd=root)
    assert done.returncode == 0, done.stderr
    evaluations = [json.loads(line) for line in (root / 'running/metrics.jsonl').read_text().splitlines()]
    first, = (r for r in evaluations if r['kind'] == 'valid')
    ours = json.loads(done.stdout)
    assert ours['best_epoch'] == 1
    assert {k: ours[k] for k in ours if '@' in k} == {k: first[k] for k in first if '@' in k}


@pytest.mark.parametrize('exclude_seen', [pytest.param(False, marks=pytest.mark.slow), True])
def test_recommend_gives_original_ids_in_the_order_of_their_scores(root, scores, exclude_seen):
    done = command(
        'recommend', '--workdir=done', '--users=103, 100', '--k=4', *['--exclude_seen'] * exclude_seen, cwd=root
    )
    expected = []
    for user in (3, 0):
        own = scores[user].copy()
        if exclude_seen:
            own[history(tiny_dataset(), user)] = -np.inf
        for rank, item in enumerate(np.argsort(-own)[:4], start=1):
            expected.append((str(100 + user), str(rank), str(1000 + item), own[item]))
    found = rows(done)
    assert [tuple(row[:3]) for row in found] == [row[:3] for row in expected]
    np.testing.assert_allclose([float(row[3]) for row in found], [row[3] for row in expected], atol=2e-6)


def test_a_history_gives_what_its_user_gets_and_k_ends_with_the_catalogue(root):
    items = ' ,'.join(str(1000 + i) for i in history(tiny_dataset(), 5))
    by_history = rows(command('recommend', '--workdir=done', f'--history={items}', '--k=1000', cwd=root))
    by_user = rows(command('recommend', '--workdir=done', '--users=105', '--k=1000', cwd=root))
    assert [row[1:3] for row in by_history] == [row[1:3] for row in by_user]
    assert {row[0] for row in by_history} == {'history'} and {row[0] for row in by_user} == {'105'}
    assert sorted(int(row[2]) for row in by_user) == list(range(1001, 1001 + ITEMS))


@pytest.mark.parametrize('name, flags, texts', [
    (
        'evaluate', ['--workdir=nothing'],
        ['--workdir=nothing holds neither a training run (config.json) nor a saved model (model.json)'],
    ),
])
def test_what_cannot_be_answered_is_refused_in_a_sentence(root, name, flags, texts):
    refused(command(name, *flags, cwd=root), *texts)


@pytest.mark.parametrize('name, flags, text', [
    ('recommend', ['--workdir=done', '--users=100', '--k=0'], '--k'),
    ('recommend', ['--workdir=done', '--user=100'], "no flag --user; did you mean 'users'"),
    ('evaluate', ['--workdir=done', '--split=train'], 'valid'),
    ('evaluate', [], 'workdir'),
])
def test_flags_that_cannot_be_used(root, name, flags, text):
    done = command(name, *flags, cwd=root)
    assert done.returncode not in (0, None) and text in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('prepared, text', [
    ('gone', 'is no longer in'), ('other', 'is not what its config.json names'),
])
def test_data_that_is_gone_or_another_is_refused(root, prepared, text):
    save_dataset(tiny_dataset(seed=5), root / 'other')
    copy = root / f'copy-{prepared}'
    copy.mkdir()
    (copy / 'checkpoints').symlink_to(root / 'done/checkpoints')
    write_config(RunFolder(copy), RunConfig('interactions', MODEL, DATA, TRAIN), root / prepared)
    refused(command('evaluate', f'--workdir={copy}', cwd=root), text, 'run its training command again')
