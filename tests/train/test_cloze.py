"""The cloze objective: which items it reads and hides, and its loss, by loops over the histories."""
import collections
import types

import jax
import numpy as np
import pytest

from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.data.examples import train_windows
from ssd4rec_jax.data.packing import build_step, choose_step_shape, plan_epoch
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.train.cloze import hidden_items
from ssd4rec_jax.train.gradients import make_gradients
from ssd4rec_jax.train.objective import Objective, objective_note, training_examples
from tests.packed import pack
from tests.tiny import history, tiny_dataset

SETTINGS = PEERS['bert4rec'](hidden_size=8, inner_size=8, num_layers=1, max_length=10, dropout_prob=0.0,
                             attention_dropout_prob=0.0)


def one_step(index):
    """All examples as one packed step of two rows."""
    shape = choose_step_shape(index.lengths, targets_per_step=10**6, tokens_per_row=4096, rows=2, every_prefix=True)
    plan = plan_epoch(index.lengths, shape, seed=0, epoch=0)
    assert plan.num_steps == 1
    return build_step(index, plan, 0)


@pytest.mark.parametrize('length', [0, 4, 5])
def test_windows_hold_what_users_train_on_from_the_newest_item_back(length):
    log = tiny_dataset()
    index = train_windows(log, length)
    found = collections.Counter(tuple(log.items[a:b]) for a, b in zip(index.start, index.stop, strict=True))
    wanted = collections.Counter()
    for user in range(60):
        items = history(log, user, held_out=2).tolist()
        while len(items) > 1:
            wanted[tuple(items[-length:])] += 1
            items = items[:-length] if length else []
    assert found == wanted
    batch = one_step(index)
    np.testing.assert_array_equal(batch.targets, batch.items)


def test_a_network_that_predicts_no_hidden_items_is_refused():
    log = tiny_dataset()
    with pytest.raises(ConfigError, match='cloze: the network sasrec does not predict hidden items; set'):
        training_examples('cloze', PEERS['sasrec'](), log, 0)
    index = training_examples('cloze', SETTINGS, log, 0, hidden=0.25)
    assert objective_note('cloze', SETTINGS, index, 0).startswith('objective: cloze, hidden items')
    assert index.num_targets.tolist() == [1 + (n - 1) / 4 for n in index.lengths.tolist()]
    wanted = np.zeros(31)
    for start, stop in zip(index.start, index.stop, strict=True):
        *others, last = log.items[start:stop].tolist()
        wanted[last] += 1
        for item in others:
            wanted[item] += 0.25
    np.testing.assert_allclose(index.target_counts(30), wanted, rtol=1e-12)


@pytest.mark.parametrize('max_history, places', [(0, 10), (20, 10), (4, 5), (1, 2)])
def test_windows_are_as_long_as_what_a_ranking_reads_with_its_mask_token(max_history, places):
    index = training_examples('cloze', SETTINGS, tiny_dataset(), max_history)
    assert index.lengths.max() == places


def test_the_term_for_seen_items_is_refused():
    settings = types.SimpleNamespace(name='mine', offers_cloze=True, seen_bias=True)
    with pytest.raises(ConfigError, match='cloze knows no term for seen items: set model.seen_bias=false'):
        training_examples('cloze', settings, tiny_dataset(), 0)


@pytest.mark.parametrize('last_alone', [0.0, 0.5, 0.9])
def test_the_last_item_is_hidden_and_others_by_chance(last_alone):
    batch = one_step(train_windows(tiny_dataset(users=1000), 0))
    layout = Layout.of(batch)
    hidden = np.asarray(hidden_items(layout, Draws.of(np.uint32(3), np.uint32(0), layout), 0.4, last_alone))
    assert not hidden[batch.segment_ids == 0].any()
    alone, of_others = [], []
    for row in range(2):
        for start, length in zip(batch.starts[row], batch.lengths[row], strict=True):
            if length:
                *others, last = hidden[row, start:start + length]
                assert last
                of_others += others
                alone.append((not any(others)) - 0.6**len(others))
    # A history is drawn for its last alone, or no other is hidden by chance.
    wanted = last_alone * (1 - np.mean([0.6**(n - 1) for n in batch.lengths[batch.lengths > 0]]))
    assert np.mean(alone) == pytest.approx(wanted, abs=4 * 0.5 / np.sqrt(len(alone)))
    assert np.mean(of_others) == pytest.approx(0.4 * (1 - last_alone), abs=4 * 0.5 / np.sqrt(len(alone)))


def test_the_loss_is_that_of_hidden_items_from_the_rest_and_at_the_end_that_of_ranking():
    network, params = init_network(SETTINGS, 30, 0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(np.float32), params)
    batch = one_step(training_examples('cloze', SETTINGS, tiny_dataset(), 0))
    gradients = make_gradients(Objective(network, 0.4, True, last_alone=0.5), device_mesh(jax.devices()[:1]), params)
    loss, count, _ = jax.jit(gradients)(params, batch, np.uint32(3), np.uint32(1))

    layout = Layout.of(batch)
    hidden = np.asarray(hidden_items(layout, Draws.of(np.uint32(3), np.uint32(1), layout), 0.4, 0.5))
    asked, whole = [], []  # each history with zeros where items are hidden, and as it is
    for row, start, length in zip(*np.nonzero(batch.lengths), batch.lengths[batch.lengths > 0], strict=True):
        at = np.s_[row, batch.starts[row, start]:batch.starts[row, start] + length]
        asked.append(np.where(hidden[at], 0, batch.items[at]).tolist())
        whole.append(batch.items[at].tolist())

    def read(histories, name):
        """One history a row."""
        alone = pack([[(0, history)] for history in histories], tokens=10, segments=1)
        return jax.jit(lambda p: getattr(network.bind(p), name)(alone.items, Layout.of(alone)))(params)

    table = params['item_embedding']
    nll = -np.asarray(jax.nn.log_softmax(read(asked, 'cloze_readouts') @ table.T))
    by_hand = [nll[n, t, item] for n, items in enumerate(whole) for t, item in enumerate(items) if not asked[n][t]]
    assert count == len(by_hand) > len(whole) + 20
    assert loss == pytest.approx(np.sum(by_hand), rel=1e-5)

    last = [items[:-1] + [0] for items in whole]
    ends = np.array([len(items) - 1 for items in whole])
    wanted = np.asarray(read(last, 'cloze_readouts'))[np.arange(len(whole)), ends]
    np.testing.assert_allclose(read([items[:-1] for items in whole], 'readout')[:, 0], wanted, rtol=0, atol=2e-5)
