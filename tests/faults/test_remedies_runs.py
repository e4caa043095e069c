"""Ways out of what is wrong with a run or a model: provoked, gone, and then it works."""
import functools
import json
import shutil
from pathlib import Path

import pytest

from ssd4rec_jax import Recommender
from ssd4rec_jax.run import checkpoints
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.manifest import MANIFEST, write_manifest
from tests.faults.inside import TINY, call, write_log
from tests.faults.remedies import EVALUATE, RECOMMEND, refused, says, tries, works

pytestmark = pytest.mark.slow  # Whole runs take minutes.

SAVED = 'stopped and saved: the same command goes on from here'
BEST_LOST = 'the same training command goes on from the newest and finds the best anew'
NONE_SOUND = 'restore one from a copy, or start the training anew with --restart, which sets this run aside'
UNREADABLE = 'try again, or rename its folder to go on with the one before'
ANOTHER_CONFIG = 'Name another --workdir, set it aside with --restart, or go on with the new config with --adopt_config'
GONE = 'the prepared data of {} is no longer in {}: run its training command again, which prepares it'
ANOTHER_LOG = 'is not what its config.json names: run its training command again, which prepares it'


def parameters(root: Path, run: str = 'run') -> str:
    return json.loads((root / run / 'result.json').read_text())['parameters_sha256']


@tries(SAVED)
def test_a_stopped_run_goes_on_with_the_same_command(half, finished):
    assert says(SAVED, (half / 'said').read_text())
    works(call('train', *TINY, folder=half), SAVED)
    assert parameters(half) == parameters(finished)


@tries(BEST_LOST)
def test_a_best_checkpoint_that_is_lost_is_found_anew_by_the_same_command(half):
    kept = Checkpoints(half / 'run/checkpoints')
    best, *others = kept.steps()
    assert kept.best_step() == best and len(others) == 2
    shutil.rmtree(half / f'run/checkpoints/{best}')
    refused(call(*EVALUATE, folder=half), BEST_LOST)
    works(call('train', *TINY, folder=half))
    assert json.loads(works(call(*EVALUATE, folder=half)).out)['best_epoch'] == 2


@tries(NONE_SOUND)
@pytest.mark.parametrize('way', ['restore', 'restart'])
def test_no_checkpoint_is_sound(half, finished, way):
    shutil.copytree(half / 'run', half / 'copy')
    metas = list(half.glob('run/checkpoints/*/meta.json'))
    for meta in metas:
        meta.write_text('{}')
    refused(call('train', *TINY, folder=half), NONE_SOUND)
    if way == 'restore':
        newest = max(Checkpoints(half / 'copy/checkpoints').steps())
        shutil.copytree(half / f'copy/checkpoints/{newest}', half / f'run/checkpoints/{newest}')
    works(call('train', *TINY, *(['--restart'] if way == 'restart' else []), folder=half))
    assert way == 'restore' or parameters(half) == parameters(finished)
    assert way == 'restore' or len(list(half.glob('run.1/checkpoints/*/meta.json'))) == len(metas)


@tries(UNREADABLE)
@pytest.mark.parametrize('way', ['again', 'rename'])
def test_a_disk_that_fails_to_read_a_checkpoint(half, finished, monkeypatch, way):
    newest, verify = max(Checkpoints(half / 'run/checkpoints').steps()), checkpoints.verify

    def fails(path: Path) -> None:
        if path.name == str(newest):
            raise OSError(5, 'Input/output error')
        verify(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, 'verify', fails)
        refused(call('train', *TINY, folder=half), UNREADABLE)
        if way == 'rename':
            (half / f'run/checkpoints/{newest}').rename(half / f'run/checkpoints/{newest}.unreadable')
            works(call('train', *TINY, folder=half))
    if way == 'again':
        works(call('train', *TINY, folder=half))
    assert parameters(half) == parameters(finished)


RESULT_UNREADABLE = '{} cannot be read ({}): try again'


@tries(RESULT_UNREADABLE)
def test_a_disk_that_fails_to_read_the_result(root, monkeypatch):
    read_bytes = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.name == 'result.json':
            raise OSError(5, 'Input/output error')
        return read_bytes(path)

    expected = parameters(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'read_bytes', fails)
        refused(call('train', *TINY, folder=root), RESULT_UNREADABLE)
    works(call('train', *TINY, folder=root))
    assert parameters(root) == expected and not list((root / 'run').glob('result.json.*'))


@tries(GONE)
@pytest.mark.parametrize('how', ['deleted', 'moved'])
def test_its_training_command_again_prepares_what_is_gone(from_checkpoints, how):
    root = from_checkpoints
    expected = works(call(*RECOMMEND, folder=root)).out
    if how == 'deleted':
        shutil.rmtree(root / 'data')
    else:
        root.rename(root.with_name('elsewhere'))
        root = root.with_name('elsewhere')
    refused(call(*RECOMMEND, folder=root), GONE)
    done = works(call('train', *TINY, folder=root))
    assert 'is prepared again' in done.out
    assert works(call(*RECOMMEND, folder=root), GONE).out == expected


@tries(ANOTHER_LOG)
def test_its_training_command_again_names_the_data_that_it_was_trained_on(from_checkpoints):
    root = from_checkpoints
    expected = works(call(*RECOMMEND, folder=root)).out
    write_log(root / 'other.csv', seed=1)
    works(call('prepare', '--dataset=interactions', '--data_dir=other.csv', '--output=other', folder=root))
    config = json.loads((root / 'run/config.json').read_text())
    (root / 'run/config.json').write_text(json.dumps({**config, 'prepared': str(root / 'other')}))
    refused(call(*RECOMMEND, folder=root), ANOTHER_LOG)
    works(call('train', *TINY, folder=root))
    assert works(call(*RECOMMEND, folder=root), ANOTHER_LOG).out == expected


FINISHED_ON_ANOTHER_LOG = (
    'holds a finished run on another log ({}; this one is {}): name another --workdir, or set it aside with --restart'
)
TRAINED_ON_ANOTHER_LOG = (
    'was trained on another log or other data settings (fingerprint {} there, {} here): name another --workdir'
)


@tries(ANOTHER_CONFIG)
@pytest.mark.parametrize('way', ['--workdir=another', '--restart', '--adopt_config'])
def test_a_run_of_another_config(half, way):
    changed = *TINY, '--set=train.learning_rate=0.01', '--set=train.max_epochs=2'
    refused(call('train', *changed, folder=half), ANOTHER_CONFIG)
    works(call('train', *changed, way, folder=half))
    folder = half / ('another' if 'another' in way else 'run')
    assert json.loads((folder / 'config.json').read_text())['train']['learning_rate'] == 0.01
    assert (folder / 'result.json').exists() and (half / 'run.1').exists() == (way == '--restart')


@tries(FINISHED_ON_ANOTHER_LOG, TRAINED_ON_ANOTHER_LOG)
@pytest.mark.parametrize('is_finished, way', [(True, '--workdir=another'), (True, '--restart'), (False, '--workdir=b')])
def test_a_run_on_another_log(root, is_finished, way):
    write_log(root / 'other.csv', seed=1)
    if not is_finished:
        (root / 'run/result.json').unlink()
    other = *TINY, '--data_dir=other.csv', '--set=train.max_epochs=2'
    said = FINISHED_ON_ANOTHER_LOG if is_finished else TRAINED_ON_ANOTHER_LOG
    refused(call('train', *other, folder=root), said)
    works(call('train', *other, way, folder=root))


WITHOUT_CONFIG = 'holds checkpoints but no config.json: name another --workdir'
HELD = 'another process is training in {}: wait for it or name another --workdir'
CONFIG_DAMAGED = '{} cannot be read ({}); restore it or name another --workdir'


@tries(WITHOUT_CONFIG, HELD, CONFIG_DAMAGED)
def test_another_workdir_is_free_where_this_one_is_not(root):
    config = (root / 'run/config.json').read_bytes()
    (root / 'run/config.json').write_bytes(b'{')
    refused(call('train', *TINY, folder=root), CONFIG_DAMAGED)
    (root / 'run/config.json').unlink()
    refused(call('train', *TINY, folder=root), WITHOUT_CONFIG)
    (root / 'run/config.json').write_bytes(config)
    holder = RunFolder(root / 'run')
    holder.lock()
    refused(call('train', *TINY, folder=root), HELD)
    works(call('train', *TINY, '--workdir=another', folder=root))
    del holder
    works(call('train', *TINY, folder=root))
    assert parameters(root, 'another') == parameters(root)


NO_RESULT = '--final={} holds no finished run (result.json): train one on the same log first'
RESULT_DAMAGED = 'is damaged ({}): run its training command again, which computes it from the best checkpoint'


@tries(NO_RESULT, RESULT_DAMAGED, '--final={} held nothing out, so that no epoch is known to be best: name another')
def test_the_final_run_needs_the_result_of_another(root):
    final = *TINY, '--workdir=final', '--final=run'
    result = (root / 'run/result.json').read_text()
    (root / 'run/result.json').write_text(result[:-9])
    refused(call('train', *final, folder=root), RESULT_DAMAGED)
    works(call('train', *TINY, folder=root))
    (root / 'run/result.json').unlink()
    refused(call('train', *final, folder=root), NO_RESULT)
    works(call('train', *TINY, folder=root))
    works(call('train', *final, folder=root))
    refused(call('train', *final[:-1], '--final=final', folder=root),
            '--final={} held nothing out, so that no epoch is known to be best: name another')


MODEL_DAMAGED = 'the model in {} is damaged: {}; copy it again or save it anew'
MODEL_UNREADABLE = 'the model in {} cannot be read ({}): copy it again'
OTHER_FORMAT = 'use the version of ssd4rec-jax that saved it, or save it again'


@tries(MODEL_DAMAGED, MODEL_UNREADABLE, OTHER_FORMAT)
def test_a_model_that_is_damaged_is_copied_again_or_saved_anew(root):
    elsewhere = root / 'model'
    copy, save = functools.partial(shutil.copytree, root / 'run/model', elsewhere), Recommender.load(root / 'run').save
    recommend = functools.partial(call, *RECOMMEND, '--workdir=model', folder=root)
    copy()
    expected = works(recommend()).out
    (elsewhere / 'weights.safetensors').write_bytes(b'')
    refused(recommend(), MODEL_DAMAGED)
    save(elsewhere)
    assert works(recommend()).out == expected
    (elsewhere / 'weights.safetensors').write_bytes(b'')
    _write_manifest(elsewhere)
    refused(recommend(), MODEL_UNREADABLE)
    shutil.rmtree(elsewhere)
    copy()
    assert works(recommend()).out == expected
    description = json.loads((elsewhere / 'model.json').read_text())
    (elsewhere / 'model.json').write_text(json.dumps({**description, 'format_version': 9}))
    _write_manifest(elsewhere)
    refused(recommend(), OTHER_FORMAT)
    save(elsewhere)
    assert works(recommend()).out == expected


def _write_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    write_manifest(folder)


WORKDIR = 'give --workdir, the folder of a training run'
ASK = 'give one of --users (of the log; --users=all for all of them), --users_file, --history and --histories'
QUOTES = 'ids separated by commas, or a JSON list where an id holds a comma, a quote or an outer blank: {}'


@tries(WORKDIR, ASK, 'Ids on the command line are {}', QUOTES)
def test_flags_that_a_command_asks_for(root):
    refused(call('recommend', '--users=1', folder=root), WORKDIR)
    refused(call('recommend', '--workdir=run', folder=root), ASK)
    (root / 'ids.txt').write_text('1\n2\n')
    (root / 'histories.jsonl').write_text('[1, 2]\n')
    for way in ('--users=1', '--users=all', '--users_file=ids.txt', '--history=1,2', '--histories=histories.jsonl'):
        works(call('recommend', '--workdir=run', way, folder=root))
    unknown = call('recommend', '--workdir=run', '--history=none,1', folder=root)
    assert unknown.code == 3 and says('Ids on the command line are {}', unknown.err) and says(QUOTES, unknown.err)
    assert works(call('recommend', '--workdir=run', '--history=["1", "2"]', folder=root)).out == (
        works(call('recommend', '--workdir=run', '--history=1,2', folder=root)).out
    )
