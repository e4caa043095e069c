"""Published sizes of data sets, for measurements without the logs themselves."""
from typing import NamedTuple

import numpy as np

from experiments.logs import QUANTILES, SHAPES
from ssd4rec_jax.errors import ConfigError


class Published(NamedTuple):
    """The published numbers of users, items and interactions of a log, and their source.

    prepared: whether they were counted after the 5-core; otherwise they are those of the raw log, and `items` is an
      upper bound for the catalogue.
    lengths: the name in experiments.logs.SHAPES of the log whose history lengths, scaled to this log's mean, are used
      in place of this log's.
    """

    users: int
    items: int
    interactions: int
    prepared: bool
    lengths: str
    source: str


_KUAIRAND = 'github.com/chongminggao/KuaiRand, README, standard policies'
LOGS = {
    'kuairand': Published(23_951, 7_111, 1_134_420, True, 'kuairand', "KuaiRand-Pure as SSD4Rec's authors prepared it"),
    'kuairand-1k': Published(1_000, 4_369_953, 11_713_045, False, 'kuairand', _KUAIRAND),
    'kuairand-27k': Published(27_285, 32_038_725, 322_278_385, False, 'kuairand', _KUAIRAND),
    'ml-1m': Published(6_040, 3_416, 999_611, True, 'ml-100k', 'grouplens.org ml-1m after the 5-core'),
    'ml-100k': Published(943, 1_349, 99_287, True, 'ml-100k', 'grouplens.org ml-100k after the 5-core'),
    'amazon-beauty': Published(22_363, 12_101, 198_502, True, 'beauty', 'snap.stanford.edu Beauty 5-core'),
    'amazon-video-games': Published(24_303, 10_672, 231_780, True, 'beauty', 'snap.stanford.edu Video Games 5-core'),
}


def published(dataset: str) -> Published:
    """The published sizes of a data set; ConfigError where there are none."""
    if dataset not in LOGS:
        raise ConfigError(f'--dataset={dataset} has no published size to project from; known: {", ".join(LOGS)}')
    return LOGS[dataset]


def history_lengths(log: Published, users: int) -> np.ndarray:
    """Lengths of `users` histories, int64 [users], each at least 5.

    Their quantiles are those of log.lengths, scaled to the published mean.
    """
    at = (np.arange(users) + 0.5) / users
    lengths = np.exp(np.interp(at, QUANTILES, np.log(SHAPES[log.lengths].lengths)))
    return np.maximum(np.round(lengths * (log.interactions / log.users / lengths.mean())), 5).astype(np.int64)
