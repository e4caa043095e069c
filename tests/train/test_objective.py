"""Both forms of the training objective: when each one runs, and that targets and expected loss are the same."""
import collections
import dataclasses
import re

import jax
import numpy as np
import pytest

from ssd4rec_jax.data.packing import build_step, choose_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.train.gradients import make_gradients
from ssd4rec_jax.train.objective import Objective, objective_note, training_examples
from tests.tiny import MODEL, TRAIN, Notes, StopAfter, history, tiny_dataset, trainer_in

pytestmark = pytest.mark.slow  # Whole trainings take minutes.

DEEP = dataclasses.replace(MODEL, num_layers=2)
FORWARD = dataclasses.replace(DEEP, beta=0.0)
LAST = dataclasses.replace(DEEP, bidirectional='last')
USERS = 60


def examples(asked, model=MODEL, max_history=0):
    return training_examples(asked, model, tiny_dataset(), max_history)


# ---- Which form runs.


@pytest.mark.parametrize('model', [MODEL, dataclasses.replace(MODEL, backward_order='aligned'), FORWARD, LAST])
def test_one_pass_where_it_is_exact(model):
    assert examples('one_pass', model).every_prefix
    assert not examples('prefix', model).every_prefix
    assert examples('one_pass', model, max_history=50).every_prefix  # No history is longer.


@pytest.mark.parametrize('model, max_history, reason', [
    (DEEP, 0, r'model.num_layers=2 and the backward direction \(model.beta=0.3\) below the last layer'),
    (MODEL, 4, r'data.max_history=4 cuts [\d,]+ histories'),
])
def test_one_pass_is_refused_where_it_is_not_exact(model, max_history, reason):
    said = f'train.objective=one_pass would not be exact: .*{reason}.*; set train.objective=prefix'
    with pytest.raises(ConfigError, match=said):
        examples('one_pass', model, max_history)
    assert 'one_pass' not in objective_note('auto', model, examples('auto', model, max_history), max_history)
    fastest = examples('fastest', model, max_history)
    assert not fastest.every_prefix and examples('fastest', MODEL).every_prefix
    note = objective_note('fastest', model, fastest, max_history)
    assert re.search(f'prefix, every prefix .* would not be exact: .*{reason}', note)


def test_truncated_reads_what_one_pass_reads_of_the_newest_items_alone():
    whole, newest = examples('one_pass'), examples('truncated', max_history=4)
    np.testing.assert_array_equal(newest.start, np.maximum(whole.start, whole.stop - 4))
    np.testing.assert_array_equal(newest.stop, whole.stop)
    np.testing.assert_array_equal(newest.target, whole.target)
    assert newest.every_prefix and newest.cut == np.count_nonzero(whole.lengths > 4) > 0
    np.testing.assert_array_equal(examples('truncated').start, whole.start)
    with pytest.raises(ConfigError, match='truncated would not be exact: .* the backward direction .* below the last'):
        examples('truncated', DEEP, 4)


@pytest.mark.parametrize('model', [MODEL, DEEP])
def test_auto_takes_prefix_and_says_where_one_pass_is_exact(model):
    index = examples('auto', model)
    assert not index.every_prefix
    note = objective_note('auto', model, index, 0)
    assert note.startswith('objective: prefix')
    assert ('train.objective=one_pass is exact here' in note) == (model is MODEL)
    assert objective_note('prefix', model, index, 0) == 'objective: prefix, every prefix of a history by itself'


# ---- The targets.


def targets_by_hand():
    """How often each (history, next item) occurs, counted in the raw sequences."""
    return collections.Counter(
        (tuple(h[:n]), h[n]) for h in (history(tiny_dataset(), user, 2).tolist() for user in range(USERS))
        for n in range(1, len(h))
    )


@pytest.mark.parametrize('rows', [1, 4])
def test_the_steps_of_one_pass_hold_every_prefix_and_target_once(rows):
    found = collections.Counter()
    index = examples('one_pass')
    shape = choose_step_shape(index.lengths, targets_per_step=64, tokens_per_row=128, rows=rows, every_prefix=True)
    plan = plan_epoch(index.lengths, shape, seed=1, epoch=0)
    for batch in step_loader(index, plan):
        assert batch.targets.shape == batch.items.shape and (batch.targets[batch.segment_ids == 0] == 0).all()
        for items, segments, targets in zip(batch.items, batch.segment_ids, batch.targets, strict=True):
            for segment in range(1, segments.max() + 1):
                own, following = items[segments == segment].tolist(), targets[segments == segment].tolist()
                found.update((tuple(own[:n + 1]), target) for n, target in enumerate(following))
    assert found == targets_by_hand()
    assert sum(plan.per_step(index.num_targets)) == found.total() and plan.num_steps > 3


def test_a_step_of_one_pass_holds_the_targets_asked_for_on_average():
    index = training_examples('one_pass', MODEL, tiny_dataset(users=2000), 0)
    shape = choose_step_shape(index.lengths, targets_per_step=512, tokens_per_row=8192, every_prefix=True)
    targets = plan_epoch(index.lengths, shape, seed=0, epoch=0).per_step(index.num_targets)
    assert abs(targets[:-1].mean() - 512) < 0.03 * 512


# ---- The loss.


def mean_loss(asked, model, mask_ratio, epochs):
    """The mean loss over all training targets of the tiny log, for the draws of each epoch: [epochs]."""
    index = examples(asked, model)
    shape = choose_step_shape(
        index.lengths, targets_per_step=10_000, tokens_per_row=4096, rows=1, every_prefix=index.every_prefix
    )
    plan = plan_epoch(index.lengths, shape, seed=0, epoch=0)
    assert plan.num_steps == 1
    network, params = init_network(model, 30, seed=0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w + 0.4 * rng.normal(size=w.shape).astype(np.float32), params)
    objective, mesh = Objective(network, mask_ratio, index.every_prefix), device_mesh(jax.devices()[:1])
    gradients = make_gradients(objective, mesh, params)
    step = jax.jit(lambda *args: gradients(*args)[:2])
    batch = build_step(index, plan, 0)
    losses = [step(params, batch, np.uint32(7), np.uint32(epoch)) for epoch in range(epochs)]
    return np.array([float(loss) / int(count) for loss, count in losses])


SMALL = dataclasses.replace(MODEL, hidden_size=8, dropout_prob=0.3)
FORWARD_ONLY = dataclasses.replace(SMALL, num_layers=2, beta=0.0)


@pytest.mark.parametrize('model', [SMALL, FORWARD_ONLY], ids=['1 layer', 'forward-only'])
def test_without_draws_both_forms_have_the_same_loss(model):
    still = dataclasses.replace(model, dropout_prob=0.0)
    assert mean_loss('one_pass', still, 0.0, 1) == pytest.approx(mean_loss('prefix', still, 0.0, 1), rel=1e-5)


@pytest.mark.slow
def test_with_mask_and_dropout_both_forms_have_the_same_expected_loss():
    """Compares the means of 400 draws; masking and dropout move the loss by many times the error of these means."""
    one_pass, prefix = (mean_loss(asked, SMALL, 0.3, 400) for asked in ('one_pass', 'prefix'))
    error = np.sqrt(one_pass.var() / len(one_pass) + prefix.var() / len(prefix))
    unmasked = mean_loss('prefix', SMALL, 0.0, 400).mean()
    undropped = mean_loss('prefix', dataclasses.replace(SMALL, dropout_prob=0.0), 0.3, 400).mean()
    assert abs(one_pass.mean() - prefix.mean()) < 4 * error
    assert min(abs(unmasked - prefix.mean()), abs(undropped - prefix.mean())) > 12 * error


# ---- The run.


def metrics(trainer):
    result = trainer.run()
    return result['valid'], result['objective'], jax.tree.map(np.asarray, trainer.state.params)


def test_a_run_says_what_it_takes_and_resumes_it_exactly(tmp_path):
    """Of two layers and with times, on all devices."""
    dataset = tiny_dataset()
    times = np.cumsum(np.random.default_rng(0).integers(1, 900, dataset.num_interactions))
    run = dict(
        train=dataclasses.replace(TRAIN, objective='one_pass'), model=dataclasses.replace(LAST, time='decay_and_dt'),
        dataset=dataclasses.replace(dataset, times=times, time_unit='s'),
    )
    reporter = Notes()
    valid, objective, params = metrics(trainer_in(tmp_path / 'whole', reporter=reporter, **run))
    assert objective == 'one_pass' and any(note.startswith('objective: one_pass') for note in reporter.notes)
    assert sum(note.startswith('time: gaps between interactions are read') for note in reporter.notes) == 1
    assert all(np.abs(w).min() > 0 for w in params['layers'][1]['mixer']['gap_scales'].values())

    assert trainer_in(tmp_path / 'cut', stop_requested=StopAfter(2), **run).run() is None
    again, _, same = metrics(trainer_in(tmp_path / 'cut', **run))
    assert again == valid
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_run_says_that_a_log_has_no_times_to_read(tmp_path):
    reporter = Notes()
    trainer_in(tmp_path, model=dataclasses.replace(MODEL, time='dt'), reporter=reporter)
    assert sum('the log has no times' in note for note in reporter.notes) == 1


def test_a_run_that_goes_on_in_the_other_form_starts_its_epoch_anew(tmp_path):
    one_pass, prefix = (dataclasses.replace(TRAIN, objective=objective) for objective in ('one_pass', 'prefix'))
    assert trainer_in(tmp_path / 'run', train=one_pass, stop_requested=StopAfter(1)).run() is None
    reporter = Notes()
    trainer = trainer_in(tmp_path / 'run', train=prefix, reporter=reporter)
    assert any('epoch 1 starts anew' in note for note in reporter.notes)
    assert not trainer.session.progress.every_prefix and trainer.session.progress.step_in_epoch == 0
    assert trainer.run()['objective'] == 'prefix'
