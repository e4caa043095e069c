"""An export answers as its run does, without this package."""
import ast
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.config.plugs import NETWORK_SETTINGS
from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.export import encoder, program
from ssd4rec_jax.export.program import PROGRAM, export_program
from ssd4rec_jax.model import networks
from ssd4rec_jax.rank.recommend import TopItems
from tests.export.runs import saved_run
from tests.tiny import history

USERS = 20
# Runs load.py as a program in whose process this project cannot be imported.
ALONE = """
import runpy, sys
sys.modules.update(ssd4rec_jax=None, pallas_kernels=None, flax=None, polars=None)
runpy.run_path(sys.argv.pop(1), run_name='__main__')
"""


def histories(saved, users=USERS):
    """Original ids of the histories of the first users."""
    ids = saved.dataset.item_ids
    return [[ids[int(i) - 1] for i in history(saved.dataset, user)] for user in range(users)]


def answers(saved, asked, **options):
    """What the run itself says: [[(id, score)]]."""
    found = pl.concat(Answers(saved).best(histories=asked, **options))
    return [
        list(found.filter(pl.col('user') == n).select('item', 'score').iter_rows()) for n in range(len(asked))
    ]


def assert_alike(found, expected, relative=1e-5):
    """The same ids in the same order, and scores that differ by no more than a share of the largest."""
    assert [[id_ for id_, _ in row] for row in found] == [[id_ for id_, _ in row] for row in expected]
    for got, wanted in zip(found, expected, strict=True):
        got, wanted = (np.array([score for _, score in row]) for row in (got, wanted))
        assert np.abs(got - wanted).max() <= relative * np.abs(wanted).max()


def loaded(folder):
    """load.py of a folder, as a module."""
    spec = importlib.util.spec_from_file_location('load', folder / 'load.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def on_cpu_alone(monkeypatch):
    """Exports no other platform's program."""
    pytest.importorskip('flatbuffers')
    monkeypatch.setattr(program, 'PLATFORMS', ['cpu'])


def test_a_process_without_this_project_gives_the_run_s_answers(exported, full):
    asked = histories(full, 3)
    done = subprocess.run(
        [sys.executable, '-c', ALONE, exported / 'load.py', *(json.dumps(h) for h in asked)], capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [[tuple(pair) for pair in json.loads(line)] for line in done.stdout.splitlines()]
    assert_alike(found, answers(full, asked))


def test_load_py_is_short_and_imports_three_packages():
    source = PROGRAM.read_text()
    imported = {name.split('.')[0] for node in ast.walk(ast.parse(source)) for name in (
        [node.module] if isinstance(node, ast.ImportFrom) else
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    )}
    assert imported - set(sys.stdlib_module_names) == {'jax', 'numpy', 'safetensors'}
    assert len(source.splitlines()) < 100


@pytest.mark.parametrize('exclude_seen', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_term_counts(exported, full, exclude_seen):
    model, asked = loaded(exported).Model(exported), [*histories(full), ['nothing of the log'], [' item é3 ']]
    with pytest.warns(UserWarning, match='1 ids are not known'):
        found = model.recommend(asked, k=40, exclude_seen=exclude_seen)
    with pytest.warns(UserWarning):
        expected = answers(full, asked, k=30, exclude_seen=exclude_seen)
    assert_alike(found, expected)
    assert [id_ for id_, _ in found[-2]] == [id_ for id_, _ in expected[-2]]  # by popularity
    if exclude_seen:
        assert all(id_ not in asked[0] for id_, _ in found[0])


def test_users_are_encoded_beside_the_items(exported, full):
    asked = histories(full)
    model = loaded(exported).Model(exported)
    np.testing.assert_allclose(model.vectors(asked), Answers(full).vectors(asked), rtol=1e-4, atol=1e-5)
    table = pl.read_parquet(exported / 'items.parquet')
    np.testing.assert_array_equal(np.array(table['vector'].to_list(), np.float32), Answers(full).table[1:])
    assert table['item'].to_list() == model.ids and table['count'].to_list() == full.item_counts[1:].tolist()


@pytest.mark.slow
def test_integer_ids_cosines_and_times(on_cpu_alone, tmp_path):
    saved = saved_run(
        text_ids=False, scores='cosine', bidirectional='last', backward_order='aligned', time='decay_and_dt',
        table_dtype='bfloat16', num_layers=3,
    )
    export_program(tmp_path / 'to', saved)
    found = loaded(tmp_path / 'to').Model(tmp_path / 'to').recommend(histories(saved))
    assert_alike(found, answers(saved, histories(saved)))
    assert isinstance(found[0][0][0], int)


@pytest.mark.slow
def test_without_a_seen_term_held_items_get_nothing_from_followers(on_cpu_alone, tmp_path):
    saved = saved_run(follower_weight=2.0)
    export_program(tmp_path / 'to', saved)
    found = loaded(tmp_path / 'to').Model(tmp_path / 'to').recommend(histories(saved))
    assert_alike(found, answers(saved, histories(saved)))


@pytest.mark.slow
def test_float64_is_exact(on_cpu_alone, x64, tmp_path):
    saved = saved_run(dtype='float64', seen_bias=True, follower_weight=2.0, max_history=9)
    export_program(tmp_path / 'to', saved)
    found = loaded(tmp_path / 'to').Model(tmp_path / 'to').recommend(histories(saved))
    top = TopItems(saved.network, saved.mesh, saved.params, max_history=9, followers=saved.followers)
    items, scores = top([history(saved.dataset, user) for user in range(USERS)], k=10)
    assert scores.dtype == np.float64
    expected = [
        [(saved.dataset.item_ids[int(i) - 1], s) for i, s in zip(*row, strict=True)]
        for row in zip(items, scores, strict=True)
    ]
    assert_alike(found, expected, relative=1e-9)


def test_what_it_says_of_itself(exported, full):
    about = json.loads((exported / 'export.json').read_text())
    assert about['fingerprint'] == full.dataset.fingerprint and about['versions']['jax'] == jax.__version__
    assert about['token_multiple'] == 256
    assert about['exported'] < about['readable_until']
    manifest = json.loads((exported / 'manifest.json').read_text())
    assert set(manifest) == {p.name for p in exported.iterdir()} - {'manifest.json'}
    assert {'encoder.cpu.bin', 'encoder.cuda.bin', 'encoder.tpu.bin', 'terms.safetensors'} <= set(manifest)


def test_damage_is_noticed_and_a_copy_heals_it(exported, full, tmp_path):
    folder = shutil.copytree(exported, tmp_path / 'copy')
    weights = bytearray((folder / 'weights.safetensors').read_bytes())
    weights[-1] ^= 1
    (folder / 'weights.safetensors').write_bytes(weights)
    with pytest.raises(ValueError, match='weights.safetensors is damaged: copy the folder again'):
        loaded(folder).Model(folder)
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    assert loaded(folder).Model(folder).recommend(histories(full, 1))


def test_only_an_export_is_replaced(on_cpu_alone, exported, tmp_path):
    saved, mine = saved_run(num_layers=1), tmp_path / 'mine'
    mine.mkdir()
    (mine / 'load.py').write_text('my own')
    with pytest.raises(UserError, match='mine is not empty and no export .*: name another folder'):
        export_program(mine, saved)
    assert (mine / 'load.py').read_text() == 'my own' and [p.name for p in tmp_path.iterdir()] == ['mine']
    old = shutil.copytree(exported, tmp_path / 'old')
    export_program(old, saved)
    assert json.loads((old / 'export.json').read_text())['config']['model']['num_layers'] == 1
    (old / 'notes.txt').write_text('my own')
    with pytest.raises(UserError, match='holds notes.txt, which is no part of an export'):
        export_program(old, saved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['mine', 'old']


@dataclasses.dataclass(frozen=True)
class MeanSettings:
    """Settings of a network of one's own."""

    name: str = 'mean'


class Mean(nnx.Module):
    """The mean of the items of a history, doubled for scoring."""

    def __init__(self, settings, num_items, *, rngs):
        self.item_embedding = nnx.Param(jax.random.normal(rngs.params(), (num_items + 1, 4)))

    def readout(self, items, layout, draws=None):
        segments = layout.lengths.shape[1]
        total = jax.vmap(lambda x, slot: jax.ops.segment_sum(x, slot, segments))(
            self.item_embedding[...][items], layout.slot
        )
        return total / jnp.maximum(layout.lengths, 1)[..., None]

    def item_vectors(self, rows):
        return 2 * rows


def test_a_network_of_one_s_own_is_exported(on_cpu_alone, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORK_SETTINGS, 'mean', MeanSettings)
    monkeypatch.setitem(networks._MODULES, MeanSettings, Mean)
    saved = saved_run(settings=MeanSettings())
    export_program(tmp_path / 'to', saved)
    assert_alike(
        loaded(tmp_path / 'to').Model(tmp_path / 'to').recommend(histories(saved)), answers(saved, histories(saved))
    )


@pytest.mark.parametrize('name', [
    'sigma', *(pytest.param(name, marks=pytest.mark.slow) for name in ('bert4rec', 'caser'))
])
def test_peers_are_exported(on_cpu_alone, tmp_path, name):
    saved = saved_run(settings=PEERS[name](hidden_size=8, num_layers=1))
    export_program(tmp_path / 'to', saved)
    assert_alike(
        loaded(tmp_path / 'to').Model(tmp_path / 'to').recommend(histories(saved)), answers(saved, histories(saved))
    )


class Reads:
    """Settings of a network that reads prices."""

    name, features = 'priced', 'price'


def test_a_network_that_reads_more_than_items_is_refused():
    with pytest.raises(ConfigError, match='model.name=priced reads price beside the items'):
        encoder.exported_network(Reads(), 5)


def test_a_network_that_needs_the_number_of_tokens_is_refused(on_cpu_alone, tmp_path, monkeypatch):
    saved = saved_run(num_layers=1)
    monkeypatch.setattr(type(saved.network.bind(saved.params)), 'readout', lambda self, items, layout: items[0, :7 // (
        items.shape[1] > 300)])
    with pytest.raises(ConfigError, match='cannot be exported for cpu .*its readout must work for any number'):
        export_program(tmp_path / 'to', saved)
    assert not list(tmp_path.iterdir())


def test_without_flatbuffers_the_extra_is_named(monkeypatch, tmp_path):
    saved, found = saved_run(num_layers=1), importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'flatbuffers' else found(name))
        with pytest.raises(ConfigError, match=r"flatbuffers, which is missing: pip install 'ssd4rec-jax\[export\]'"):
            export_program(tmp_path / 'to', saved)
    assert not list(tmp_path.iterdir())
