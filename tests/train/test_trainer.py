"""The training loop, run inside this process: stopping, resuming, other device counts, divergence."""
import dataclasses
import json

import jax
import numpy as np
import pytest

import ssd4rec_jax.train.program
import ssd4rec_jax.train.trainer
from ssd4rec_jax.data.examples import train_examples
from ssd4rec_jax.data.packing import build_step, plan_epoch
from ssd4rec_jax.errors import ConfigError, TrainingError
from ssd4rec_jax.model.network import parameters_sha256
from ssd4rec_jax.parallel.mesh import device_mesh, place_rows
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.gradients import make_gradients
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.program import TrainProgram
from tests.tiny import DATA, TRAIN, Notes, StopAfter, history, tiny_dataset, trainer_in
from tests.train.adamw import adamw_by_hand

SPEED = ('targets/s', 'tokens/s', 'train_seconds', 'evaluation_seconds')


def records(path, kind=None) -> list[dict]:
    rows = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows if kind in (None, row['kind'])]


def steps_of(path) -> list[int]:
    return sorted(int(p.name) for p in (path / 'checkpoints').iterdir() if p.name.isdigit())


def use_devices(monkeypatch, count):
    def mesh_of_some(_, model_shards):
        return device_mesh(jax.devices()[:count], model_shards)

    monkeypatch.setattr(ssd4rec_jax.train.trainer, 'device_mesh', mesh_of_some)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(workdir, result, notes) of an uninterrupted run of two epochs on eight devices."""
    path, said = tmp_path_factory.mktemp('whole'), Notes()
    return path, trainer_in(path, reporter=said).run(), said.notes


def test_what_a_run_says_and_logs(whole):
    path, result, notes = whole
    dataset = tiny_dataset()
    examples = int((dataset.lengths - 3).sum())
    train = records(path, 'train')
    steps = train[-1]['step'] // 2
    epoch = next(note for note in notes if f'{examples:,} targets in {steps} steps of 8 x ' in note)
    due = {s for s in range(1, 2 * steps + 1) if s % TRAIN.log_every == 0 or s in (steps, 2 * steps)}
    assert [r['step'] for r in train] == sorted(due)
    assert [r['epoch'] for r in train] == [1 + (r['step'] > steps) for r in train]
    assert {r['learning_rate'] for r in train} == {TRAIN.learning_rate}
    valid = records(path, 'valid')
    assert [(r['step'], r['epoch']) for r in valid] == [(steps, 1), (2 * steps, 2)]
    # The tokens of all prefixes, divided by the places for tokens in the epoch.
    tokens = sum(n * (n + 1) // 2 for n in (dataset.lengths - 3).tolist())
    rows, width = [int(x) for x in epoch.split(' steps of ')[1].split(' tokens')[0].replace(',', '').split(' x ')]
    assert valid[0]['packing_fill'] == pytest.approx(tokens / (steps * rows * width))
    assert result['packing_fill'] == pytest.approx(tokens / (steps * rows * width))
    assert records(path, 'test')[0]['NDCG@10'] == result['test']['NDCG@10']


def test_a_stopped_run_goes_on_bitwise_and_its_checkpoint_holds_the_config(whole, tmp_path):
    workdir, result, _ = whole
    assert trainer_in(tmp_path, stop_requested=StopAfter(2)).run() is None
    assert steps_of(tmp_path) == [2] and not (tmp_path / 'result.json').exists()
    meta = json.loads((tmp_path / 'checkpoints/2/meta.json').read_text())
    assert (meta['epoch'], meta['step_in_epoch']) == (0, 2)
    assert meta['config']['train'] == dataclasses.asdict(TRAIN) and meta['config']['data'] == dataclasses.asdict(DATA)
    again = trainer_in(tmp_path)
    resumed = again.run()
    assert resumed['parameters_sha256'] == result['parameters_sha256']
    assert (resumed['valid'], resumed['test']) == (result['valid'], result['test'])
    assert records(tmp_path) == records(workdir)


@pytest.mark.parametrize('epochs', [1, 2])
def test_a_run_whose_epochs_are_one_step_stops_between_them_and_goes_on_bitwise(tmp_path, epochs):
    one_step = dataclasses.replace(TRAIN, targets_per_step=4096, max_epochs=3)
    whole = trainer_in(tmp_path / 'whole', train=one_step).run()
    assert [record['step'] for record in records(tmp_path / 'whole', 'valid')] == [1, 2, 3]
    assert trainer_in(tmp_path / 'cut', train=one_step, stop_requested=StopAfter(epochs)).run() is None
    assert [record['step'] for record in records(tmp_path / 'cut', 'valid')] == [*range(1, epochs + 1)]
    meta = json.loads((tmp_path / f'cut/checkpoints/{epochs}/meta.json').read_text())
    assert (meta['epoch'], meta['step_in_epoch']) == (epochs, 0)
    resumed = trainer_in(tmp_path / 'cut', train=one_step).run()
    assert resumed['parameters_sha256'] == whole['parameters_sha256'] and resumed['test'] == whole['test']
    assert records(tmp_path / 'cut') == records(tmp_path / 'whole')


def test_what_a_step_needs_is_on_the_devices_while_the_step_before_it_runs(tmp_path, monkeypatch):
    events, compiled = [], TrainProgram.compile

    class Step:
        def __init__(self, program, shape, **how):
            self.step = compiled(program, shape, **how)

        def __call__(self, *arguments):
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arguments))
            events.append('step')
            return self.step(*arguments)

        def __getattr__(self, name):
            return getattr(self.step, name)

    class Settled(Reporter):
        def step(self, loss, targets_per_second):
            events.append('loss')

    def put(*arguments):
        events.append('batch')
        return place_rows(*arguments)

    monkeypatch.setattr(TrainProgram, 'compile', lambda program, *given, **how: Step(program, *given, **how))
    monkeypatch.setattr(ssd4rec_jax.train.trainer, 'place_rows', put)
    assert trainer_in(tmp_path, stop_requested=StopAfter(3), reporter=Settled()).run() is None
    # The stop comes with the third step, whose loss is then read at once.
    assert ' '.join(events) == 'batch step batch step batch loss step batch loss loss'


@pytest.mark.slow
def test_small_arrays_in_one_vector_change_no_result(whole, tmp_path, monkeypatch):
    """A run as on a GPU, stopped within an epoch and gone on with, and saved with all of its arrays."""
    workdir, result, _ = whole
    monkeypatch.setattr(ssd4rec_jax.train.program, 'PACKED_ON', {'cpu'})
    packed = trainer_in(tmp_path, stop_requested=StopAfter(2))
    vectors, others = packed.program.carried(packed.state)
    for vector, dtype in zip(vectors, (np.float32, np.int32), strict=True):
        # Each begins at a multiple of 256 bytes, which kernels ask for.
        small = [a for a in jax.tree.leaves(packed.state) if a.dtype == dtype]
        assert vector.dtype == dtype and vector.size == sum(-(-a.size // 64) * 64 for a in small)
    assert not others
    assert packed.run() is None
    del packed  # This releases its lock.
    resumed = trainer_in(tmp_path)
    assert resumed.run()['parameters'] == result['parameters']
    split = trainer_in(tmp_path / 'split', model_shards=2, stop_requested=StopAfter(2))
    assert split.run() is None
    for array, like in zip(jax.tree.leaves(split.state), jax.tree.leaves(split.program.like), strict=True):
        assert array.shape == like.shape and array.sharding.is_equivalent_to(like.sharding, array.ndim)
    for ours, theirs in zip(records(tmp_path, 'valid'), records(workdir, 'valid'), strict=True):
        assert ours['epoch_loss'] == pytest.approx(theirs['epoch_loss'], rel=1e-6)
    plain = trainer_in(workdir).session.checkpoints.restore_best(resumed.program.like).state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), resumed.state, plain)


@pytest.mark.slow
@pytest.mark.parametrize('first, then', [(8, 1), (1, 8)])
def test_a_run_goes_on_with_another_device_count(whole, tmp_path, monkeypatch, first, then):
    workdir, _, _ = whole
    use_devices(monkeypatch, first)
    assert trainer_in(tmp_path, stop_requested=StopAfter(3)).run() is None
    use_devices(monkeypatch, then)
    resumed = trainer_in(tmp_path).run()
    assert resumed['devices'] == then
    for ours, theirs in zip(records(tmp_path, 'valid'), records(workdir, 'valid'), strict=True):
        assert ours['epoch_loss'] == pytest.approx(theirs['epoch_loss'], rel=1e-5)
        for metric in ('HR@10', 'NDCG@10', 'MRR@20'):  # Rounding may swap two items with nearly equal scores.
            assert ours[metric] == pytest.approx(theirs[metric], abs=0.5 / 60)


def test_rows_that_the_devices_cannot_share_are_refused(tmp_path, monkeypatch):
    use_devices(monkeypatch, 1)
    three = dataclasses.replace(DATA, rows_per_step=3)
    whole = trainer_in(tmp_path, data=three)
    whole.session.save(whole.state)  # Saving step 0 needs no compilation.
    whole.session.checkpoints.wait()
    del whole  # This releases its lock.
    use_devices(monkeypatch, 2)
    with pytest.raises(ConfigError, match='3 rows, which 2 devices cannot share evenly: set data.rows_per_step'):
        trainer_in(tmp_path, data=three)


@pytest.mark.parametrize('change, starts_anew', [
    ({'targets_per_step': 32}, True), ({'seed': 1}, True), ({'max_epochs': 9, 'log_every': 1}, False),
])
def test_a_config_that_packs_in_another_way_starts_the_epoch_anew(tmp_path, change, starts_anew):
    half = trainer_in(tmp_path)
    half.session.progress = dataclasses.replace(half.session.progress, epoch=3, step_in_epoch=2)
    half.session.save(half.state)
    half.session.checkpoints.wait()
    tokens = half.session.progress.shape.tokens
    del half
    said = Notes()
    other = trainer_in(tmp_path, train=dataclasses.replace(TRAIN, **change), reporter=said)
    assert (other.session.progress.epoch, other.session.progress.step_in_epoch) == (3, 0 if starts_anew else 2)
    assert any('epoch 4 starts anew' in note for note in said.notes) == starts_anew
    assert other.session.progress.shape.tokens == (tokens // 2 if 'targets_per_step' in change else tokens)


def test_another_log_in_the_same_workdir_is_refused(whole):
    workdir, _, _ = whole
    before = (workdir / 'metrics.jsonl').read_bytes()
    with pytest.raises(ConfigError, match='another log or other data settings .fingerprint tiny0 there, tiny7 here'):
        trainer_in(workdir, dataset=tiny_dataset(seed=7))
    assert (workdir / 'metrics.jsonl').read_bytes() == before


def scripted_metrics(monkeypatch, values):
    """Make Ranker.metrics return these values of NDCG@10, and then 0."""
    values = iter(values)
    names = [f'{m}@{k}' for m in ('HR', 'NDCG', 'MRR') for k in (10, 20)]
    monkeypatch.setattr(Ranker, 'metrics', lambda *_: dict.fromkeys(names, 0.0) | {'NDCG@10': next(values, 0.0)})


@pytest.mark.slow
def test_early_stopping_honours_patience_and_the_result_is_the_best_epochs(whole, tmp_path, monkeypatch):
    """Epoch 2 is the best, 3 and 4 are worse, so with patience 1 the run ends with the parameters of epoch 2."""
    scripted_metrics(monkeypatch, [0.1, 0.3, 0.2, 0.2])
    result = trainer_in(tmp_path / 'stops', train=dataclasses.replace(TRAIN, max_epochs=9, patience=1)).run()
    assert (result['epochs'], result['best_epoch']) == (4, 2)
    assert [r['best'] for r in records(tmp_path / 'stops', 'valid')] == [True, True, False, False]
    scripted_metrics(monkeypatch, [0.1, 0.3])
    two_epochs = trainer_in(tmp_path / 'two').run()
    assert two_epochs['best_epoch'] == 2
    assert result['parameters_sha256'] == two_epochs['parameters_sha256']


class Breaks(Reporter):
    """Fails at a number of steps of a session."""

    def __init__(self, at: int):
        self.left = at

    def step(self, loss, targets_per_second):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError('the reporter breaks')


@pytest.mark.slow
def test_the_best_epoch_waits_in_memory_for_the_next_checkpoint_and_nothing_else_changes(tmp_path, monkeypatch):
    """Epoch 2 of four is the best. First each epoch ends with a checkpoint, then none does, then epoch 4 fails."""
    scores = [0.1, 0.3, 0.2, 0.2]
    train = dataclasses.replace(TRAIN, max_epochs=4)
    scripted_metrics(monkeypatch, scores)
    expected = trainer_in(tmp_path / 'each', train=dataclasses.replace(train, checkpoint_seconds=0.0)).run()
    steps = records(tmp_path / 'each', 'valid')[0]['step']
    assert steps_of(tmp_path / 'each') == [2 * steps, 3 * steps, 4 * steps]

    scripted_metrics(monkeypatch, scores)
    seldom = trainer_in(tmp_path / 'seldom', train=train).run()
    assert steps_of(tmp_path / 'seldom') == [2 * steps, 4 * steps]

    scripted_metrics(monkeypatch, scores)
    with pytest.raises(RuntimeError, match='the reporter breaks'):
        trainer_in(tmp_path / 'broken', train=train, reporter=Breaks(3 * steps + 2)).run()
    assert steps_of(tmp_path / 'broken') == [2 * steps]
    scripted_metrics(monkeypatch, scores[2:])
    resumed = trainer_in(tmp_path / 'broken', train=train).run()
    assert steps_of(tmp_path / 'broken') == [2 * steps, 4 * steps]
    for result, name in ((seldom, 'seldom'), (resumed, 'broken')):
        for key in ('parameters_sha256', 'best_epoch', 'epochs', 'valid', 'test'):
            assert result[key] == expected[key], (name, key)
        assert records(tmp_path / name) == records(tmp_path / 'each')


def test_a_checkpoint_within_an_epoch_comes_after_that_of_the_best_epoch(tmp_path, monkeypatch):
    scripted_metrics(monkeypatch, [0.3, 0.2])
    steps = trainer_in(tmp_path / 'one', train=dataclasses.replace(TRAIN, max_epochs=1))._plan().num_steps
    assert trainer_in(tmp_path / 'two', stop_requested=StopAfter(steps + 2)).run() is None
    assert steps_of(tmp_path / 'two') == [steps, steps + 2]
    meta = json.loads((tmp_path / 'two' / 'checkpoints' / str(steps + 2) / 'meta.json').read_text())
    assert (meta['best_step'], meta['epoch'], meta['step_in_epoch']) == (steps, 1, 2)


@pytest.mark.slow
def test_divergence_names_step_rate_and_last_good_checkpoint_and_saves_nothing(whole, tmp_path):
    trainer_in(tmp_path, train=dataclasses.replace(TRAIN, max_epochs=1)).run()
    good = steps_of(tmp_path)[-1]
    diverges = trainer_in(
        tmp_path, train=dataclasses.replace(TRAIN, max_epochs=3, learning_rate=1e30, checkpoint_seconds=1e-3)
    )
    with pytest.raises(TrainingError, match=r'not finite at step (\d+) \(epoch 2, learning rate 1e\+30\)') as error:
        diverges.run()
    newest = steps_of(tmp_path)[-1]
    assert str(tmp_path / 'checkpoints' / str(newest)) in str(error.value)
    restored = diverges.session.checkpoints.restore_latest(diverges.state).state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.params)) and newest >= good
    assert [r['step'] for r in records(tmp_path, 'train')] == sorted({r['step'] for r in records(tmp_path, 'train')})


def test_a_run_that_diverges_at_once_says_that_there_is_no_checkpoint(tmp_path):
    hopeless = trainer_in(tmp_path, train=dataclasses.replace(TRAIN, learning_rate=1e30))
    with pytest.raises(TrainingError, match='not finite at step [12] .*learning rate 1e.30.; no checkpoint yet. Lower'):
        hopeless.run()
    assert not (tmp_path / 'checkpoints').exists()


def test_max_history_says_how_many_histories_it_cuts(tmp_path):
    said = Notes()
    trainer_in(tmp_path, data=dataclasses.replace(DATA, max_history=4), reporter=said)
    prefixes = [n for length in tiny_dataset().lengths for n in range(1, length - 2)]
    cut = sum(n > 4 for n in prefixes)
    assert f'data.max_history=4 shortens {cut} of {len(prefixes)} training histories' in said.notes


@pytest.mark.slow
def test_two_steps_with_every_optimiser_option_equal_a_loop_by_hand(tmp_path):
    config = dataclasses.replace(
        TRAIN, optimizer='adamw', weight_decay=0.1, clip_norm=0.05, schedule='warmup_cosine', warmup_steps=1,
        decay_steps=9, learning_rate=0.03,
    )
    trainer = trainer_in(tmp_path, train=config, stop_requested=StopAfter(3))
    params = jax.tree.map(np.array, trainer.state.params)
    mesh = device_mesh(jax.devices()[:8])
    gradients = jax.jit(make_gradients(Objective(trainer.program.network, DATA.mask_ratio), mesh, params))
    examples = train_examples(tiny_dataset())
    plan = plan_epoch(examples.lengths, trainer.session.progress.shape, seed=config.seed, epoch=0)
    leaves, structure = jax.tree.flatten(params)
    by_hand = adamw_by_hand(leaves, rates=[0.0, 0.03, 0.03 * (1 + np.cos(np.pi / 8)) / 2], decay=0.1, clip=0.05)
    for step in range(3):
        batch = build_step(examples, plan, step)
        now = jax.tree.unflatten(structure, [leaf.astype(np.float32) for leaf in leaves])
        _, count, grads = gradients(now, batch, np.uint32(config.seed), np.uint32(0))
        leaves = by_hand([np.asarray(g, np.float64) / int(count) for g in jax.tree.leaves(grads)])
    assert trainer.run() is None
    moved = 0
    for ours, theirs, start in zip(jax.tree.leaves(trainer.state.params), leaves, jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
        moved = max(moved, np.abs(theirs - start).max())
    assert moved > 0.02


def test_the_result_describes_the_run(whole):
    path, result, _ = whole
    assert RunFolder(path).read_result() == result
    trainer = trainer_in(path)
    best = trainer.session.checkpoints.restore_best(trainer.state).state.params
    assert result['parameters_sha256'] == parameters_sha256(best)
    assert result['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(best))
    # Popularity by hand: how often an item occurs among items 1 .. n-2; ties are ordered by id.
    dataset, ranks = tiny_dataset(), []
    counts = np.zeros(31)
    for user in range(60):
        np.add.at(counts, history(dataset, user, held_out=2), 1)
    for user in range(60):
        target = history(dataset, user)[-1]
        ranks.append(1 + sum(
            counts[i] > counts[target] or (counts[i] == counts[target] and i < target) for i in range(1, 31)
        ))
    assert result['popularity']['test']['HR@10'] == pytest.approx(np.mean(np.array(ranks) <= 10))
    assert result['popularity']['test']['MRR@20'] == pytest.approx(np.mean([1 / r if r <= 20 else 0 for r in ranks]))
