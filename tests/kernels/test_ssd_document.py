"""Runs the code of docs/ssd.md as it stands there."""
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ssd_scan
from pallas_kernels.ssd.api import IMPLEMENTATIONS

TEXT = (Path(__file__).parents[2] / 'docs/ssd.md').read_text()


@pytest.fixture(scope='module')
def page():
    """The names that the code of the page defines."""
    names = {}
    (code,) = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
    exec(code, names)
    return names


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_decoding_and_windows_go_on_where_the_row_was_left(page):
    whole, states = page['read'](page['mixer'], page['u'])
    assert_close(jnp.concatenate([page['outputs'], page['more']], axis=1), whole)
    assert_close(page['states'], states)
    assert_close(page['decoded'], whole[:, 50])
    assert_close(page['by_segment'][1], whole[1])
    assert_close(page['of_segments'][1, 0], states[1])
    np.testing.assert_array_equal(page['of_segments'][1, 1:], 0)  # the second row has one segment


@pytest.mark.slow
def test_a_sequence_and_a_segment_are_like_a_row_of_their_own(page):
    alone, state = page['read'](page['mixer'], page['u'][:1, 31:])
    assert_close(page['packed'][:, 31:], alone)
    assert_close(page['by_segment'][:1, 31:], alone)
    assert_close(page['of_each'][2], state[0])
    assert_close(page['of_segments'][0], page['of_each'])


def test_the_page_lists_every_implementation_in_its_order_and_every_option():
    assert re.findall(r'^\| `(\w+)` \| (?:TPUs|everything|NVIDIA)', TEXT, re.MULTILINE) == list(IMPLEMENTATIONS)
    options = [name for name in ssd_scan.__kwdefaults__ if name not in ('num_segments', 'implementation', 'chunk_size')]
    assert [name for name in options if f'`{name}`' not in TEXT] == []
