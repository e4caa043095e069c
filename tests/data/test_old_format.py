"""Data prepared by the version before format 2 (commit 28be952) opens as it is: nothing that was prepared is lost."""
import shutil
from pathlib import Path

import numpy as np

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import open_dataset, save_dataset
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.data.summary import describe, kept_lines

FIXTURE = Path(__file__).parent / 'prepared_format_1'  # an .inter file and what that version made of it
TEST_ITEMS = 'c7db477b26c5e08cec2b0831f6667c9acfe471ec60a6708f886be69a0a3d4cd4'  # as that version printed it


def test_it_opens_with_its_ids_and_without_times():
    dataset = open_dataset(FIXTURE / 'prepared')
    assert dataset.user_ids.tolist() == [f'u{u}' for u in range(6)]
    assert dataset.item_ids[np.array([0, 6])].tolist() == ['i0', 'i1ö']
    assert dataset.times is None and kept_lines(dataset, FIXTURE) == []
    assert describe(dataset)['test_items_sha256'] == TEST_ITEMS


def test_it_is_used_again_and_not_rebuilt(tmp_path):
    shutil.copytree(FIXTURE / 'prepared', tmp_path / 'prepared')
    before = (tmp_path / 'prepared' / 'dataset.json').read_bytes()
    dataset, _ = prepare(find_source('ml-100k', FIXTURE), DataConfig(), tmp_path / 'prepared')
    assert dataset.times is None and (tmp_path / 'prepared' / 'dataset.json').read_bytes() == before


def test_todays_preparation_is_the_same_and_has_times(tmp_path):
    old = open_dataset(FIXTURE / 'prepared')
    new, _ = prepare(find_source('ml-100k', FIXTURE), DataConfig(), tmp_path / 'new')
    assert new.fingerprint == old.fingerprint
    np.testing.assert_array_equal(new.items, old.items)
    np.testing.assert_array_equal(new.offsets, old.offsets)
    assert new.user_ids.tolist() == old.user_ids.tolist() and new.item_ids.tolist() == old.item_ids.tolist()
    assert new.times[:12].tolist() == [100 + 7 * t for t in range(12)]


def test_it_can_be_saved_in_todays_format(tmp_path):
    save_dataset(open_dataset(FIXTURE / 'prepared'), tmp_path / 'again')
    assert open_dataset(tmp_path / 'again').item_ids.tolist() == open_dataset(FIXTURE / 'prepared').item_ids.tolist()
