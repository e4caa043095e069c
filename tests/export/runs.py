"""A small run without training, whose parameters are drawn so that every term of its scores counts."""
import jax
import numpy as np

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.followers import followers_of
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh, shardings
from ssd4rec_jax.run.model_folder import item_counts
from ssd4rec_jax.run.saved_run import SavedRun
from tests.tiny import tiny_dataset

SMALL = dict(hidden_size=16, num_layers=2, d_state=8, headdim=8)


def saved_run(
    *, text_ids: bool = True, max_history: int = 0, times=None, mesh=None, settings=None, **model
) -> SavedRun:
    """A run of the tiny log whose parameters are drawn so that every term counts.

    settings: of another network than the one that `model` changes. times: int64 [interactions], in seconds.
    """
    dataset: SequenceDataset = tiny_dataset()
    if text_ids:
        texts = TextIds.of(f'item é{n}' for n in range(dataset.num_items))
        dataset = SequenceDataset(
            'tiny', dataset.items, dataset.offsets, dataset.user_ids, texts, dataset.fingerprint, times, 's'
        )
    config = RunConfig(
        'interactions', settings or ModelConfig(**{**SMALL, **model}), DataConfig(max_history=max_history),
        TrainConfig(),
    )
    mesh = mesh or device_mesh()
    network, params = init_network(config.model, dataset.num_items, 0)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: np.asarray(a + 0.3 * rng.standard_normal(a.shape), a.dtype), params)
    params = network.split(params, mesh)
    return SavedRun(
        config, dataset, mesh, network, jax.device_put(params, shardings(params, mesh)), 1, 7, item_counts(dataset),
        followers_of(config.model, dataset),
    )
