"""What packing and sharing a pass must not change, for every peer; numbers of parameters; published settings."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax import presets
from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.peers import NETWORKS, published
from ssd4rec_jax.train.objective import training_examples
from ssd4rec_jax.tune.space import override
from tests.packed import pack
from tests.tiny import tiny_dataset

ITEMS = 30
HISTORIES = [np.random.default_rng(n).integers(1, ITEMS + 1, n).tolist() for n in (6, 1, 9, 3, 5)]


SMALL = {
    'caser': dict(window=4), 'hstu': dict(num_heads=2, max_length=9), 'tim4rec': dict(headdim=4, max_length=9),
}


def gaps(example: int, length: int) -> np.ndarray:
    return np.random.default_rng(example).normal(size=16)[:length]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ('tim4rec', 'sigma', 'lrurec', 'sasrec'))) for name in PEERS
])
def test_a_readout_depends_on_its_own_history_alone_and_prefixes_share_a_pass(name):
    """Each history, with dropout, reads the same in another place between others, and so does each of its prefixes."""
    settings = PEERS[name](hidden_size=8, num_layers=2, dropout_prob=0.3, **SMALL.get(name, {}))
    network, params = init_network(settings, ITEMS, 0)

    @jax.jit
    def read(batch):
        layout = Layout.of(batch)
        draws = Draws.of(np.uint32(1), np.uint32(2), layout)
        model = network.bind(params)
        shared = model.prefix_readouts(batch.items, layout, draws) if settings.prefixes_share_a_pass else None
        return model.readout(batch.items, layout, draws), shared

    whole = pack([list(enumerate(HISTORIES))], tokens=32, segments=8, gaps=gaps)
    readouts, of_prefixes = read(whole)
    assert np.isfinite(readouts).all()
    if of_prefixes is None:
        of_prefixes = np.full((1, 32, readouts.shape[-1]), np.nan)
        of_prefixes[0, Layout.of(whole).ends[0, :5]] = readouts[0, :5]
    prefixes = [(n, end) for n, history in enumerate(HISTORIES) for end in range(1, len(history) + 1)][::-1]
    rows = [prefixes[at:at + 8] for at in range(0, len(prefixes), 8)]  # in another order than above
    parts = pack([[(n, HISTORIES[n][:end]) for n, end in row] for row in rows], tokens=64, segments=8, gaps=gaps)
    found = read(parts)[0]
    for row, some in enumerate(rows):
        for slot, (n, end) in enumerate(some):
            wanted = of_prefixes[0, whole.starts[0, n] + end - 1]
            if end == len(HISTORIES[n]):
                np.testing.assert_allclose(readouts[0, n], wanted, rtol=0, atol=2e-5, err_msg=str((n, end)))
            elif not settings.prefixes_share_a_pass:
                continue
            np.testing.assert_allclose(found[row, slot], wanted, rtol=0, atol=2e-5, err_msg=str((n, end)))


def test_where_prefixes_share_no_pass_none_is_read():
    network, params = init_network(PEERS['tim4rec'](hidden_size=8, **SMALL['tim4rec']), ITEMS, 0)
    batch = pack([list(enumerate(HISTORIES))], tokens=32, segments=8)
    with pytest.raises(ValueError, match='prefixes share no pass in tim4rec'):
        network.bind(params).prefix_readouts(batch.items, Layout.of(batch))


@pytest.mark.parametrize('name', ['bert4rec', 'hstu', 'sasrec', 'tim4rec'])
def test_the_newest_items_of_a_longer_history_are_read(name):
    settings = PEERS[name](hidden_size=8, num_layers=1, **SMALL.get(name, {}) | dict(max_length=4))
    network, params = init_network(settings, ITEMS, 0)

    def read(histories):
        batch = pack([list(enumerate(histories))], tokens=32, segments=8)
        read = jax.jit(lambda batch: network.bind(params).readout(batch.items, Layout.of(batch)))
        return np.asarray(read(batch))[0, :len(histories)]

    places = 3 if name == 'bert4rec' else 4  # beside the mask token
    cut = read([history[-places:] for history in HISTORIES])
    np.testing.assert_allclose(read(HISTORIES), cut, rtol=0, atol=1e-5)
    assert np.abs(cut[0] - read([HISTORIES[0][1 - places:]])[0]).max() > 1e-3


# By hand, for D = 64 and a catalogue of 12,101 items, as Beauty's: 12,102 x 64 = 774,528 numbers in the table.
FEED_FORWARD = 64 * 256 + 256 + 256 * 64 + 64 + 2 * 64
MAMBA = 64 * 256 + 4 * 128 + 128 + 128 * (4 + 64) + 4 * 128 + 128 + 128 * 32 + 128 + 128 * 64
COUNTS = {
    'bert4rec': 774_528 + 12_102 + 50 * 64 + 128 + 2 * (4 * (64 * 64 + 64) + 128 + FEED_FORWARD) + 64 * 64 + 64 + 128,
    'caser': 774_528 + 55 * 64 * 8 + 10 * 8 + 10 * 4 + 4 + (4 * 64 + 10 * 8) * 64 + 64 + 64 * 64 + 64,
    'gru4rec': 774_528 + 3 * 128 * (64 + 128) + 128 * 64 + 64,
    'sasrec': 774_528 + 50 * 64 + 128 + 2 * (4 * (64 * 64 + 64) + 128 + FEED_FORWARD),
    'hstu': 774_528 + 200 * 64 + 2 * (64 * 256 + 200 + 129 + 64 * 64 + 64),
    'lrurec': 774_528 + 12_102 + 128
    + 2 * (3 * 128 + (64 * 128 + 128) * 2 + 2 * 128 * 64 + 64 + 128 + FEED_FORWARD),
    'mamba4rec': 774_528 + 128 + MAMBA + 128 + FEED_FORWARD,
    'sigma': 774_528 + 128 + MAMBA + 128 + FEED_FORWARD + 5 * (64 * 64 + 64) + 3 * 64 * 64 + 64 + 2 * 64 * 192 + 3,
    'tim4rec': 774_528 + 128 + 100 + 2 * (
        3 * (50 * 50 + 50) + 2 * (4 * 4 + 4) + 100 + 64 * 324 + 324 + 5 * 192 + 3 * 4 + 128 + 128 * 64 + 64 + 128
        + FEED_FORWARD
    ),
}


@pytest.mark.parametrize('name', ['sasrec', 'bert4rec'])
def test_vectors_of_items_and_places_begin_as_far_apart_as_is_asked(name):
    _, params = init_network(PEERS[name](hidden_size=64, max_length=100, initializer_range=0.5), 1000, 0)
    for leaf in (params['item_embedding'][:, :64], params['positions']):
        assert leaf.std() == pytest.approx(0.5, rel=0.03) and abs(leaf.mean()) < 0.02


@pytest.mark.parametrize('name', PEERS)
def test_parameters_are_counted(name):
    shapes = jax.eval_shape(lambda: init_network(PEERS[name](hidden_size=64), 12_101, 0)[1])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[name]


LOSSES = {'sasrec_gbce': 'gbce', 'hstu': 'uniform'}


@pytest.mark.parametrize('name', NETWORKS)
def test_published_settings_are_settings(name):
    found = published(name)
    config = apply_overrides(
        presets.default_config('amazon-beauty'), [f'{key}={value}' for key, value in found.items()]
    )
    network = name.split('_')[0]
    assert type(config.model) is PEERS[network] and config.model.name == network
    assert config.data.mask_ratio == (0.2 if name == 'bert4rec' else 0)
    assert config.train.loss == LOSSES.get(name, 'full')
    read = getattr(config.model, 'max_length', config.data.max_history)
    assert read == {'caser': 10, 'lrurec': 0}.get(name, 50)


@pytest.mark.parametrize('name', NETWORKS)
def test_settings_for_movielens_read_longer_histories_where_authors_have_them(name):
    found = published(name, 'ml-100k')
    assert found == published(name, 'ml-1m')
    config = apply_overrides(presets.default_config('ml-100k'), [override(*setting) for setting in found.items()])
    read = getattr(config.model, 'max_length', config.data.max_history)
    assert read == {'caser': 10, 'lrurec': 0, 'gru4rec': 50, 'bert4rec': 50}.get(name, 200)
    if name in ('caser', 'lrurec', 'gru4rec', 'bert4rec'):
        assert found == published(name)
    if name == 'tim4rec':
        assert (config.model.dropout_prob, config.model.time_dropout_prob, config.model.p2p_residual) == (.2, .2, False)
    if name == 'hstu':
        assert (config.model.num_layers, config.model.num_heads, config.loss.negatives) == (2, 1, 128)


def test_dropout_of_gaps_drops_so_many_and_keeps_their_mean():
    """The gaps of each history of a batch, in each head, as the scale and the gate of a layer read them."""
    config = PEERS['tim4rec'](hidden_size=8, headdim=4, max_length=64, time_dropout_prob=0.25)
    network, params = init_network(config, ITEMS, 0)
    draws = Draws(jnp.arange(8, dtype=jnp.uint32).reshape(2, 4))
    time = network.bind(params).layers[0].time
    gaps = jnp.ones((2, 4, config.num_heads, 64))
    kept = {use: time.dropped(gaps, draws, f'layer0.{use}') for use in ('scale', 'gate')}
    for found in kept.values():
        assert set(np.unique(found)) == {0, np.float32(1 / 0.75)} and abs(float(found.mean()) - 1) < 0.03
    assert (kept['scale'] != kept['gate']).any()
    assert (time.dropped(gaps, None, 'layer0.gate') == gaps).all()
    scale, following = time(gaps, draws, 'layer0')
    assert (scale != time(gaps, None, 'layer0')[0]).any(), 'the scale reads what is left'
    gate = jax.nn.sigmoid(time.gate(kept['gate']))
    np.testing.assert_allclose(following, time.norm(gate * gaps + (1 - gate) * scale), rtol=1e-5, atol=1e-6)


def test_a_network_that_nobody_published_is_refused():
    with pytest.raises(ConfigError, match="sasrek has no published settings; did you mean 'sasrec'"):
        published('sasrek')


@pytest.mark.parametrize('name, change, said', [
    ('bert4rec', dict(max_length=1), 'model.max_length=1 must be at least 2: an item and the mask token'),
    ('sasrec', dict(num_heads=3), 'model.num_heads=3 does not divide model.hidden_size=64'),
    ('sasrec', dict(max_length=0), 'model.max_length=0 must be at least 1'),
    ('sasrec', dict(attention_dropout_prob=1.0), r'model.attention_dropout_prob=1.0 must be in \[0, 1\)'),
    ('sasrec', dict(initializer_range=0.0), r'model.initializer_range=0.0 must be above 0'),
    ('sasrec', dict(dtype='half'), "model.dtype='half' must be one of auto"),
])
def test_settings_that_make_no_network_are_refused(name, change, said):
    with pytest.raises(ConfigError, match=said):
        PEERS[name](**change)


def test_prefixes_share_no_pass_where_the_network_cuts_histories():
    """The tiny log's training histories have up to 9 items."""
    log = tiny_dataset()
    assert training_examples('one_pass', PEERS['sasrec'](), log, 0).every_prefix
    with pytest.raises(ConfigError, match=r'not be exact: model.max_length=5 cuts \d+ histories, whose prefixes'):
        training_examples('one_pass', PEERS['sasrec'](max_length=5), log, 0)
    assert training_examples('prefix', PEERS['sasrec'](max_length=5), log, 0).lengths.max() == 5
