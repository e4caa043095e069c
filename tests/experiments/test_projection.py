"""Times from published rates, memory verdicts, and step shapes from published sizes, with numbers found by hand."""
import dataclasses

import numpy as np
import pytest

from experiments.compiled.collectives import Collective
from experiments.pod.assumed import assumed_step, example_lengths
from experiments.pod.chips import CHIPS, GIB, chip_of, ring_bytes_per_second
from experiments.pod.memory import Memory, parse_refusal
from experiments.pod.projection import project, seconds
from experiments.published import LOGS, history_lengths, published
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import default_config

POD = [(x, y, 0) for y in range(16) for x in range(16)]  # Device 16 y + x lies at (x, y).
V5E = CHIPS['v5e']


def test_chips():
    assert chip_of('v5e:16x16') is V5E and V5E.matmul_flops == 197e12
    with pytest.raises(ConfigError, match="--topology=v4:2x2x1: the published rates of 'v4' are not known"):
        chip_of('v4:2x2x1')


@pytest.mark.parametrize('chip, coordinates, expected', [
    ('v5e', POD, 200e9),  # The ends of both axes are connected.
    ('v5e', POD[:16], 100e9),  # one axis of 16 chips
    ('v5e', POD[::16], 100e9),
    ('v5e', [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)], 100e9),  # two short axes
    ('v5e', POD[:8], 50e9),
    ('v6e', POD[:16], 200e9),
    ('v5p', [(x, y, z) for x in range(4) for y in range(4) for z in range(4)], 600e9),
    ('v5p', [(0, 0, z) for z in range(4)], 200e9),
])
def test_a_group_has_the_links_of_the_axes_that_it_lies_along(chip, coordinates, expected):
    assert ring_bytes_per_second(CHIPS[chip], coordinates) == expected


def test_projection():
    over_all = Collective('all-reduce', tuple(range(256)), 1, 0, 2e9)
    over_model = Collective('all-gather', tuple(range(16)), 1, 0, 1e9)
    assert seconds(V5E, over_all, POD) == 0.01 and seconds(V5E, over_model, POD) == 0.01
    p = project(V5E, 197e10, 819e8, [over_all, over_model], POD)
    assert p == pytest.approx((0.01, 0.1, 0.02))
    assert p.overlapped == pytest.approx(0.1) and p.in_turn == pytest.approx(0.13)


def test_verdicts():
    memory = Memory(12 * GIB, 16 * GIB)
    assert memory.fits and memory.verdict == 'FITS: 12.00 GiB of 16.00 GiB a chip, 4.00 GiB to spare'
    memory = Memory(18 * GIB, 16 * GIB)
    assert not memory.fits and memory.verdict == 'DOES NOT FIT: 18.00 GiB against 16.00 GiB a chip, 2.00 GiB too much'


@pytest.mark.parametrize('message', [
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.00G) exceeds '
    'available HBM (15.75G).',
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.00G of 15.75G '
    'hbm. Exceeded hbm capacity by 2.25G.\n\nTotal hbm usage >= 18.25G:\n    reserved 258.00M',
])
def test_the_compilers_refusal(message):
    memory = parse_refusal(message, 16 * GIB)
    assert (memory.needed, memory.available, memory.fits) == (18 * GIB, int(15.75 * GIB), False)
    assert memory.refused.startswith('Ran out of memory') and '\n' not in memory.refused


def test_another_refusal_is_none_of_memory():
    assert parse_refusal('Ran out of memory in memory space vmem. Used 200.00M of 128.00M', 16 * GIB) is None
    assert parse_refusal('UNIMPLEMENTED: sorting', 16 * GIB) is None


@pytest.mark.parametrize('name', list(LOGS))
def test_history_lengths_have_the_published_mean(name):
    log = LOGS[name]
    lengths = history_lengths(log, 1000)
    assert len(lengths) == 1000 and lengths.min() >= 5
    assert lengths.mean() == pytest.approx(log.interactions / log.users, rel=0.02)


def test_examples_are_the_configured_ones():
    config = default_config('kuairand')
    lengths = example_lengths(LOGS['kuairand'], config)
    # 48 to 50 million tokens for 1,062,567 targets are published; the quantiles come from a similar log.
    assert lengths.mean() == pytest.approx(49e6 / 1_062_567, rel=0.15)
    assert len(lengths) == pytest.approx(1_062_567, rel=0.01)
    cut = dataclasses.replace(config, data=dataclasses.replace(config.data, max_history=20))
    assert example_lengths(LOGS['kuairand'], cut).max() == 20


def test_one_pass_has_an_example_a_user_and_is_refused_as_in_training():
    config = apply_overrides(default_config('kuairand'), ['train.objective=one_pass'])
    shallow = apply_overrides(config, ['model.num_layers=1', 'data.max_history=1000'])
    assert len(example_lengths(LOGS['kuairand'], shallow)) == 23_951
    for refused, reason in (
        (config, 'model.num_layers=2 and the backward direction'),
        (apply_overrides(shallow, ['data.max_history=20']), r'data.max_history=20 cuts [\d,]+ histories'),
    ):
        with pytest.raises(ConfigError, match=f'train.objective=one_pass would not be exact: .*{reason}'):
            example_lengths(LOGS['kuairand'], refused)


def test_the_step_is_the_one_that_training_would_choose():
    log, config = LOGS['kuairand'], default_config('kuairand')
    longest = int(example_lengths(log, config).max())
    one, many = assumed_step(log, config, 1), assumed_step(log, config, 256)
    assert one.targets == pytest.approx(1024, rel=0.02) and one.shape.tokens <= 8192
    assert many.shape.rows == 256 and longest <= many.shape.tokens < longest + 16
    assert many.targets > 1024  # Each chip has a row that is long enough for the longest history.
    assert any(sentence.startswith('step: 256 rows (1 a chip) of') for sentence in many.sentences)


def test_a_step_as_asked_for():
    log, config = LOGS['amazon-beauty'], default_config('amazon-beauty')
    assumed = assumed_step(log, config, 4, tokens_per_row=64, rows_per_device=2)
    assert (assumed.shape.rows, assumed.shape.tokens) == (8, 64)
    assert assumed.shape.segments >= 64 / np.minimum(example_lengths(log, config), 64).mean()
    assert any('cut to --tokens_per_row=64' in sentence for sentence in assumed.sentences)
    with pytest.raises(ConfigError, match='--tokens_per_row=100 must be a multiple of 16'):
        assumed_step(log, config, 4, tokens_per_row=100)


def test_sizes_are_refused_where_none_are_published():
    with pytest.raises(ConfigError, match='--dataset=synthetic has no published size'):
        published('synthetic')
