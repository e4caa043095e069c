"""Each peer compared with released code, run in float64: scores of all items and every gradient (tests/golden).

How the files were made: random weights, three histories of 7, 1 and 4 items of a catalogue of 13, no dropout; scores
of all items after each history, the summed cross-entropy of one target each, and its gradients. Weights and gradients
were renamed and transposed to our names and layouts; nothing else was changed.

    bert4rec     RecBole's bert4rec.py and TransformerEncoder, max_length 7, with the mask token behind each history and
                 another one in it; row 0 of its table, padding, equals that of the mask token, and has its gradient too
    caser        RecBole's caser.py, images of 5 items, padded on the left with zeros, as those of the authors' loader
                 (github.com/graytowne/caser_pytorch); users have vectors of zeros, and the penalty is left out
    gru4rec      RecBole's recbole/model/sequential_recommender/gru4rec.py, two layers
    sasrec       RecBole's sasrec.py and TransformerEncoder, max_length 7
    hstu         research/modeling/sequential/hstu.py of github.com/facebookresearch/generative-recommenders, with
                 fbgemm's three operations on ragged arrays written out, max_length 7 and 11 outputs. Scores are cosines
                 over .05. Times are in ticks, and a query's time is that of its own item. Places and distances beyond
                 max_length, whose gradients are 0, were left out
    lrurec       model/lru.py of github.com/yueqirex/LRURec, with torch.cfloat replaced by torch.cdouble; histories are
                 padded on the left, as its loader does
    mamba4rec_*  mamba4rec.py of github.com/chengkai-liu/Mamba4Rec on mamba_ssm's Mamba. Its selective_scan_ref and its
                 path without causal_conv1d stand for its CUDA kernels, and float64 for its casts to float32
    sigma        gated_mamba.py of github.com/Applied-Machine-Learning-Lab/SIMGA (018d73a, 15 December 2024), on the
                 same Mamba. Each history ran by itself, without padding, and its length - num_kept stood for the number
                 of places that are reversed, 45; a line was left out whose result nothing reads and whose shapes do not
                 fit
    tim4rec      tim4rec.py and ssd.py of github.com/AlwaysFHao/TiM4Rec, length 7; mamba_ssm's ssd_selective_scan,
                 selective_scan_ref and rms_norm_ref stand for its Triton kernels. The time of the newest item stands in
                 padding. tim4rec_movielens has the gate of its configurations for other logs (p2p_residual False)
"""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.model.networks import item_vectors
from ssd4rec_jax.model.scores import scores
from tests.packed import pack

GOLDEN = Path(__file__).parent.parent / 'golden'
FILES = [
    'bert4rec', 'caser', 'gru4rec', 'hstu', 'lrurec', 'mamba4rec_1layer', 'mamba4rec_2layer', 'sasrec', 'sigma',
    'tim4rec', 'tim4rec_movielens',
]


def by_name(params: dict) -> dict[str, np.ndarray]:
    """Arrays by their path in a nested dict, such as layers/0/norm/scale."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {'/'.join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize('file', FILES)
def test_scores_and_every_gradient_equal_those_of_released_code(file, x64):
    golden = dict(np.load(GOLDEN / f'{file}.npz'))
    settings = PEERS[file.split('_')[0]](**json.loads(str(golden['settings'])), dropout_prob=0.0, dtype='float64')
    histories = json.loads(str(golden['histories']))
    network, params = init_network(settings, len(golden['param/item_embedding']) - 1, 0)
    theirs = {name.removeprefix('param/'): array for name, array in golden.items() if name.startswith('param/')}
    assert {name: array.shape for name, array in by_name(params).items()} == {k: a.shape for k, a in theirs.items()}
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(theirs['/'.join(str(key.key) for key in path)]), params
    )
    numbers = json.loads(str(golden.get('gaps', 'null')))  # what ssd4rec_jax.data.gaps makes of the gaps
    batch = pack(
        [list(enumerate(histories))], tokens=16, segments=4, gaps=numbers and (lambda example, _: numbers[example])
    )

    def loss(params):
        model = network.bind(params)
        found = scores(model.readout(batch.items, Layout.of(batch))[0], item_vectors(model, model.item_embedding[...]))
        found = found[:len(histories)]
        own = jnp.take_along_axis(found, golden['targets'][:, None], axis=1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(found, axis=1) - own), found

    (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(found, golden['scores'], rtol=0, atol=1e-9 * np.abs(golden['scores']).max())
    np.testing.assert_allclose(value, golden['loss'], rtol=1e-9)
    for name, grad in by_name(grads).items():
        wanted = golden[f'grad/{name}']
        np.testing.assert_allclose(grad, wanted, rtol=0, atol=1e-9 * max(np.abs(wanted).max(), 1e-3), err_msg=name)
