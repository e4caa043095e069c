"""The optimiser's options, compared with Adam written out in NumPy."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.train.optimizer import learning_rate_schedule, make_optimizer
from tests.train.adamw import adamw_by_hand


@pytest.mark.parametrize('config, by_hand', [
    (TrainConfig(learning_rate=0.1), dict(rates=[0.1] * 4)),
    (TrainConfig(learning_rate=0.1, optimizer='adamw', weight_decay=0.2), dict(rates=[0.1] * 4, decay=0.2)),
    (TrainConfig(learning_rate=0.1, clip_norm=0.5), dict(rates=[0.1] * 4, clip=0.5)),
    (
        TrainConfig(learning_rate=0.1, schedule='warmup_cosine', warmup_steps=2, decay_steps=6),
        dict(rates=[0.0, 0.05, 0.1, 0.1 * (1 + np.cos(np.pi / 4)) / 2]),
    ),
], ids=['adam', 'adamw', 'clip_norm', 'warmup_cosine'])
def test_four_steps(config, by_hand):
    rng = np.random.default_rng(0)
    params = [rng.normal(size=(3, 2)), rng.normal(size=4)]
    optimizer = make_optimizer(config, sparse_table=False)
    ours = [jnp.asarray(p, jnp.float32) for p in params]
    state = optimizer.init(ours)
    expected = adamw_by_hand(params, **by_hand)
    for scale in (1.0, 0.01, 3.0, 0.1):  # Some gradients are below the clipping norm and some above it.
        grads = [scale * rng.normal(size=p.shape) for p in params]
        updates, state = optimizer.update([jnp.asarray(g, jnp.float32) for g in grads], state, ours)
        ours, theirs = optax.apply_updates(ours, updates), expected(grads)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_schedule_ends_at_zero():
    schedule = learning_rate_schedule(TrainConfig(schedule='warmup_cosine', warmup_steps=2, decay_steps=6))
    assert float(schedule(6)) == float(schedule(100)) == 0.0
    assert float(schedule(2)) == pytest.approx(1e-3)


def test_a_schedule_over_all_epochs():
    config = TrainConfig(schedule='warmup_cosine', warmup_share=0.2, max_epochs=5, learning_rate=0.1)
    schedule = learning_rate_schedule(config, steps_per_epoch=4)
    assert [float(schedule(step)) for step in (0, 2, 4)] == pytest.approx([0.0, 0.05, 0.1])
    assert float(schedule(12)) == pytest.approx(0.05) and float(schedule(20)) == 0.0
    with pytest.raises(ConfigError, match='decay_steps'):
        learning_rate_schedule(config)


def test_the_seen_term_and_the_table_have_rates_of_their_own():
    """Adam's first step is its learning rate, whatever the gradient; row-wise Adagrad's is g / sqrt(mean(g^2))."""
    config = TrainConfig(learning_rate=0.01, seen_learning_rate=0.5, table_optimizer='adagrad', table_learning_rate=2.0)
    optimizer = make_optimizer(config, sparse_table=False, has_seen=True)
    grads = {
        'seen': {'age': jnp.array([1.0, -3.0])}, 'item_embedding': jnp.array([[3.0, 4.0], [0.0, 0.0]]),
        'norm': {'scale': jnp.array([7.0])},
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates['seen']['age'], [-0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(updates['norm']['scale'], [-0.01], rtol=1e-5)
    np.testing.assert_allclose(updates['item_embedding'], [[-6 / 12.5**0.5, -8 / 12.5**0.5], [0, 0]], rtol=1e-5)
    updates, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(updates['item_embedding'][0], [-6 / 25**0.5, -8 / 25**0.5], rtol=1e-5)


def test_the_table_follows_the_schedule():
    config = TrainConfig(
        schedule='warmup_cosine', warmup_steps=2, decay_steps=6, table_learning_rate=0.5, learning_rate=0.1
    )
    optimizer = make_optimizer(config, sparse_table=True)
    assert [float(optimizer.rate(step)) for step in (0, 1, 2, 6)] == pytest.approx([0, 0.25, 0.5, 0])
    assert make_optimizer(TrainConfig(table_learning_rate=0.5), sparse_table=True).rate(3) == 0.5
