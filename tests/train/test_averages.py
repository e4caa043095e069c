"""Moving averages of the parameters: by hand, across a resume, and as what a run answers with."""
import dataclasses

import chex
import jax
import numpy as np
import pytest

from ssd4rec_jax.run.saved_run import load_run, write_config
from tests.tiny import TRAIN, StopAfter, trainer_in

AVERAGED = dataclasses.replace(TRAIN, ema_decay=0.5)


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['full', 'sampled'])
def test_averages_by_hand(tmp_path, loss):
    trainer = trainer_in(tmp_path / 'run', train=dataclasses.replace(AVERAGED, loss=loss, num_negatives=8))
    assert ('item_embedding' in trainer.state.averaged) == (loss == 'full')
    expected = jax.tree.map(np.asarray, trainer.state.averaged)
    chex.assert_trees_all_equal(expected, {n: jax.tree.map(np.asarray, trainer.state.params[n]) for n in expected})
    seen, compiled = [], trainer.program.compile

    class Watched:
        """A compiled step whose parameters are kept."""

        def __init__(self, step):
            self.step, self.memory_analysis = step, step.memory_analysis

        def __call__(self, *arguments):
            state, step_loss = self.step(*arguments)
            seen.append(jax.tree.map(np.array, state.params))
            return state, step_loss

    trainer.program.compile = lambda *arguments, **options: Watched(compiled(*arguments, **options))
    trainer.stop_requested = lambda: len(seen) == 4
    assert trainer.run() is None
    for step, params in enumerate(seen, start=1):
        keep = min(0.5, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda mean, w, keep=keep: keep * mean + (1 - keep) * w, expected, {name: params[name] for name in expected}
        )
    chex.assert_trees_all_close(trainer.state.averaged, expected, rtol=1e-5, atol=1e-7)
    answering = trainer.state.answering
    assert answering['norm'] is trainer.state.averaged['norm']


@pytest.mark.slow
def test_a_resumed_run_ends_as_a_whole_one_and_answers_with_its_averages(tmp_path):
    whole = trainer_in(tmp_path / 'whole', train=AVERAGED)
    result = whole.run()
    parts = trainer_in(tmp_path / 'parts', train=AVERAGED, stop_requested=StopAfter(3))
    assert parts.run() is None
    averaged = jax.tree.map(np.asarray, parts.state.averaged)
    del parts  # It holds the folder's lock.
    again = trainer_in(tmp_path / 'parts', train=AVERAGED)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, again.state.averaged), averaged)
    assert again.run()['parameters_sha256'] == result['parameters_sha256']
    write_config(again.folder, again.config, tmp_path)
    saved = load_run(tmp_path / 'parts' / 'model')
    answering = whole.program.network.whole(whole.state.answering)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, saved.params), jax.tree.map(np.asarray, answering))
    assert np.abs(np.asarray(whole.state.params['norm']['scale'] - saved.params['norm']['scale'])).max() > 0
