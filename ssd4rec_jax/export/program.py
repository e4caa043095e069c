"""The format `jax`: all that answering needs, for load.py, which runs without this package.

    load.py                the program of the folder: histories of original ids in, ids and scores out
    encoder.cpu.bin, encoder.cuda.bin, encoder.tpu.bin     the encoder as StableHLO, by jax.export
    weights.safetensors    its weights by name, but for an item table that items.safetensors holds
    items.safetensors      vectors [items + 1, D], row 0 for the mask; counts; ids as offsets and UTF-8 bytes
    terms.safetensors      what the seen-item term and the follower term add; empty without them
    items.parquet          item, count, vector once more, for other programs
    export.json            config, fingerprint, versions, and until when JAX promises to read the encoder
    manifest.json          size and sha256 of every file above
"""
import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from safetensors.numpy import save_file

from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.data.vocabulary import TextIds, stored_ids
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.export.encoder import PLATFORMS, TOKEN_MULTIPLE, export_encoder, exported_network, named
from ssd4rec_jax.export.folder import export_folder
from ssd4rec_jax.model.networks import item_vectors
from ssd4rec_jax.model.seen import AGES, COUNTS
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING
from ssd4rec_jax.rank.followers import FADING, NEWEST
from ssd4rec_jax.run.model_folder import id_series
from ssd4rec_jax.run.saved_run import SavedRun

PROGRAM = Path(__file__).with_name('load.py')


def export_program(path: Path, saved: SavedRun) -> str:
    """Write the folder; returns how it is asked. UserError as program_folder raises it."""
    with program_folder(path, saved, 'jax'):
        return f"python {path / PROGRAM.name} '[\"ITEM\", \"ITEM\"]' recommends"


@contextlib.contextmanager
def program_folder(path: Path, saved: SavedRun, kind: str) -> Iterator[tuple[Path, np.ndarray]]:
    """A folder with all of the above, in which more may be written before it appears, and the item vectors.

    kind: the name of the format. The vectors are [items + 1, D], row 0 for the mask. UserError where the network cannot
    be exported or `path` holds something else.
    """
    if importlib.util.find_spec('flatbuffers') is None:
        raise ConfigError("jax.export writes with flatbuffers, which is missing: pip install 'ssd4rec-jax[export]'")
    network, _ = exported_network(saved.config.model, saved.dataset.num_items)
    params = saved.network.whole(saved.params)
    weights, model = named(params), network.bind(params)
    # Made in the dtype of the table, as the run makes them.
    vectors = np.asarray(item_vectors(model, jnp.asarray(params[ITEM_EMBEDDING])), weights[ITEM_EMBEDDING].dtype)
    if np.array_equal(vectors, weights[ITEM_EMBEDDING]):
        del weights[ITEM_EMBEDDING]
    ids = stored_ids(saved.dataset.item_ids)
    texts = ids if isinstance(ids, TextIds) else TextIds.of(map(str, ids.tolist()))
    about = {
        'dtype': str(vectors.dtype), 'max_history': saved.config.data.max_history,
        'integer_ids': not isinstance(ids, TextIds),
        'token_multiple': TOKEN_MULTIPLE,
    }
    programs = {platform: export_encoder(network, params, platform) for platform in PLATFORMS}
    counts = np.asarray(saved.item_counts)
    with export_folder(path, saved, kind, about) as folder:
        for platform, program in programs.items():
            (folder / f'encoder.{platform}.bin').write_bytes(program)
        (folder / PROGRAM.name).write_bytes(PROGRAM.read_bytes())
        save_file(weights, folder / 'weights.safetensors')
        save_file(
            {'vectors': vectors, 'counts': counts, 'ids.offsets': texts.offsets, 'ids.bytes': texts.bytes},
            folder / 'items.safetensors',
        )
        save_file(_terms(model, saved.followers, len(vectors)), folder / 'terms.safetensors')
        rows = pl.Series('vector', vectors[1:], dtype=pl.Array(pl.Float32, vectors.shape[1])).arr.to_list()
        items = pl.DataFrame({'item': id_series(ids), 'count': counts[1:], 'vector': rows})
        items.write_parquet(folder / 'items.parquet')
        yield folder, vectors


def _terms(model: Any, followers: Followers | None, rows: int) -> dict[str, np.ndarray]:
    """What the seen-item term and the follower term add, by name; see ssd4rec_jax.model.seen and rank.followers."""
    found: dict[str, np.ndarray] = {}
    if hasattr(model, 'seen'):
        bias = model.seen.bias
        found |= {'seen.ages': np.asarray(AGES), 'seen.age': np.asarray(bias.age)}
        found |= {'seen.counts': np.asarray(COUNTS), 'seen.times': np.asarray(bias.times)}
    if followers is not None:
        missing = ((0, rows - len(followers.items)), (0, 0))  # of items that were added without training
        found |= {f'followers.{name}': np.pad(table, missing) for name, table in followers._asdict().items()}
        found['followers.fading'] = np.asarray(FADING ** jnp.arange(NEWEST, dtype=followers.strength.dtype))
    return found
