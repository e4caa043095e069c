"""Settings that fit a log and a machine, for who names no others."""
import numpy as np

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.presets.families import SMALL, better


def auto_config(published: RunConfig, dataset: SequenceDataset, *, platform: str) -> tuple[RunConfig, str]:
    """(settings for this log on this platform, a sentence that says what was chosen and why).

    published: the settings that the log was prepared with. On 'gpu' and 'tpu' the network is as wide as the published
    one.
    """
    mean = float(np.mean(dataset.lengths))
    hidden_size = SMALL if platform == 'cpu' else published.model.hidden_size
    repeats = _repeats(dataset)
    num_targets = int(np.maximum(dataset.held_out.train_stop - dataset.offsets[:-1] - 1, 1).sum())
    config = better(
        published, mean_length=mean, num_items=dataset.num_items,
        num_targets=num_targets, repeats=repeats, hidden_size=hidden_size,
    )
    followers = 'followers left out'
    if config.model.follower_weight:
        followers = 'followers rank higher'
    elif config.model.fit_followers and config.data.split != 'none':
        followers = 'validation weighs followers'
    layers = '1 layer' if config.model.num_layers == 1 else f'{config.model.num_layers} layers'
    train = config.train
    softmax = f'{train.num_negatives:,} negatives of' if train.loss == 'sampled' else 'a softmax over all'
    return config, (
        f'settings: {hidden_size} wide, {layers} (histories hold {mean:.0f} items on average), '
        f'{softmax} {dataset.num_items:,} items, {train.targets_per_step:,} targets per step, '
        f'{followers} ({repeats:.0%} of interactions are repeats, '
        f'{num_targets / dataset.num_items:.0f} targets for each item)'
    )


def _repeats(dataset: SequenceDataset) -> float:
    """The share of interactions with an item that the user had before."""
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    return 1 - len(np.unique(user * (dataset.num_items + 1) + dataset.items)) / dataset.num_interactions
