"""The training losses, by name (`train.loss`). There are two kinds.

A full loss gets the whole item table, to score the whole catalogue:

    of(readout [..., D], table [held, D], targets int32 [...], real bool [...], *, shard, settings) -> scalar

It returns the sum over the real targets. table is this device's part of the item table, split as `shard` says; with one
shard it is the whole table. A sampled loss (samples=True) gets the rows that a step touches and a sample of negatives:

    of(readout [rows, slots, D], table [n, D], targets, real [rows, slots], negatives [k], expected, probability [n],
       *, settings) -> losses [rows, slots]

Here targets and negatives are positions among those n rows (see ssd4rec_jax.train.sampled_softmax). With a sampled
loss, row-wise Adagrad updates the item table.

Where the network has a seen-item term, a loss of either kind also gets seen=(Bias, Seen), as ssd4rec_jax.model.seen
has them: what it adds to which scores.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from ssd4rec_jax.config.loss import NoSettings
from ssd4rec_jax.config.plugs import LOSS_SETTINGS
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.train.full_softmax import softmax_loss_sum
from ssd4rec_jax.train.gbce import gbce_losses
from ssd4rec_jax.train.label_smoothing import smoothing_sum
from ssd4rec_jax.train.sampled_softmax import sampled_losses
from ssd4rec_jax.train.uniform_softmax import uniform_losses


class Loss(NamedTuple):
    """A loss with its settings bound.

    of: a function of one of the two kinds in this file's docstring. samples: whether it is a sampled loss.
    splits: whether it can work on one device's part of the item table. adds_seen: whether it takes `seen`.
    """

    of: Callable[..., Any]
    samples: bool = False
    splits: bool = True
    adds_seen: bool = True


def _full(readout, table, targets, real, *, shard, settings, seen=None):
    loss = softmax_loss_sum(readout, table, targets, real, seen=seen, shard=shard)
    epsilon = getattr(settings, 'label_smoothing', 0.0)  # train.loss=auto has no settings
    if epsilon:
        loss = loss + epsilon * smoothing_sum(readout, table, targets, real, seen=seen, shard=shard)
    return loss


def _sampled(*arrays, settings, seen=None):
    del settings
    return sampled_losses(*arrays, seen=seen)


_LOSSES = {
    'full': Loss(_full), 'sampled': Loss(_sampled, samples=True),
    'gbce': Loss(gbce_losses, samples=True, adds_seen=False),
    'uniform': Loss(uniform_losses, samples=True, adds_seen=False),
}


def register_loss(
    name: str, of: Callable[..., Any], settings: type = NoSettings, *, samples: bool = False, splits: bool = False,
    adds_seen: bool = False,
) -> None:
    """Make a loss available under train.loss=name.

    of: a function of one of the two kinds in this file's docstring. settings: the frozen dataclass whose fields are set
    as loss.FIELD. samples, splits, adds_seen: as in Loss.
    """
    LOSS_SETTINGS[name] = settings
    _LOSSES[name] = Loss(of, samples, splits, adds_seen)


def make_loss(
    train: TrainConfig, settings: Any, num_items: int, model_shards: int = 1, *, has_seen: bool = False
) -> Loss:
    """The loss that a run uses on a catalogue of num_items items.

    settings: those of the loss. has_seen: whether the network has a seen-item term. Raises ConfigError where the loss
    cannot add that term, or where the item table is split and the loss cannot work on a part.
    """
    name = train.loss_name(num_items)
    loss = _LOSSES[name]
    if model_shards > 1 and not loss.splits:
        raise ConfigError(f'train.loss={name} works on a whole item table alone: train with --model_shards=1')
    if has_seen and not loss.adds_seen:
        raise ConfigError(f'train.loss={name} does not add the seen-item term: train with --set=model.seen_bias=false')
    return loss._replace(of=functools.partial(loss.of, settings=settings))


FULL_SOFTMAX = make_loss(TrainConfig(loss='full'), NoSettings(), 0)
SAMPLED_SOFTMAX = make_loss(TrainConfig(loss='sampled'), NoSettings(), 0)
