"""A model as a folder that travels: everything that answering needs, in files that other programs read too.

    model.json                 config, step, best epoch, fingerprint of the data, versions
    weights.safetensors        the parameters by name; a large item table lies in parts, item_embedding.00000, .00001,
    ... vocabulary.safetensors     original ids of users and items, and how often each item occurs
    followers.safetensors      what the follower term adds; absent without it
    histories.safetensors      each user's items in time order; absent where they were left out
    items.parquet, users.parquet     the ids once more, for other programs
    manifest.json              size and sha256 of every file above

Text ids are stored as offsets and UTF-8 bytes, integer ids as int64.
"""
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.config.run import RunConfig, from_dict, to_dict
from ssd4rec_jax.data.dataset import Outside, SequenceDataset, with_split
from ssd4rec_jax.data.features import feature_arrays, features_of
from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.data.vocabulary import TextIds, stored_ids
from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.files import first_line
from ssd4rec_jax.model.network import Network, abstract_network
from ssd4rec_jax.parallel.host_buffer import host_zeros
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, shardings
from ssd4rec_jax.run.manifest import MANIFEST, Damaged, verify
from ssd4rec_jax.run.whole_folder import whole_folder

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS, VOCABULARY, FOLLOWERS, HISTORIES = (
    'model.json', 'weights.safetensors', 'vocabulary.safetensors', 'followers.safetensors', 'histories.safetensors',
)
_FILES = {DESCRIPTION, WEIGHTS, VOCABULARY, FOLLOWERS, HISTORIES, 'items.parquet', 'users.parquet', MANIFEST}
PART_BYTES = 1 << 30  # of an item table


def is_model_folder(path: Path) -> bool:
    """Whether a model was saved in this folder."""
    return (path / DESCRIPTION).is_file()


def model_step(path: Path) -> int | None:
    """The step of the run at which a saved model's weights were taken; None where no readable model lies there."""
    try:
        return int(json.loads((path / DESCRIPTION).read_text())['step'])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def item_counts(dataset: SequenceDataset) -> np.ndarray:
    """int64 [items + 1], how often each item occurs in the log."""
    return np.bincount(dataset.items, minlength=dataset.num_items + 1)


def save_model(
    path: Path, config: RunConfig, dataset: SequenceDataset, params: dict, *, step: int, best_epoch: int,
    histories: bool = True, followers: Followers | None = None,
) -> None:
    """Write a model folder; it appears under its name whole, and replaces only another model folder.

    params: whole NumPy arrays, the item table without padding. histories: keep each user's history, so that users can
    be recommended to by name and the model can be evaluated without the log. UserError where it cannot be written.
    """
    reads_gaps = TIME_GAP in features_read(config.model)  # The typical gap is needed without the histories too.
    with whole_folder(path, _FILES, 'a saved model') as partial:
        description = {
            'format_version': FORMAT_VERSION, 'config': to_dict(config), 'step': step, 'best_epoch': best_epoch,
            'fingerprint': dataset.fingerprint, 'time_unit': dataset.time_unit,
            'typical_gap': dataset.measured_gaps().typical if reads_gaps else dataset.typical_gap,
            'users': dataset.num_users, 'items': dataset.num_items, 'features': list(dataset.features),
            'versions': {
                'python': sys.version.split()[0], 'jax': jax.__version__, 'flax': flax.__version__,
                'numpy': np.__version__,
            },
        }
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False) + '\n')
        save_file(dict(_named_arrays(params)), partial / WEIGHTS, metadata={'step': str(step)})
        counts = item_counts(dataset)
        users = stored_ids(dataset.user_ids)
        vocabulary = {**id_arrays('item_ids', dataset.item_ids), 'item_counts': counts}
        items = pl.DataFrame({'item': id_series(dataset.item_ids), 'count': counts[1:]})
        items.write_parquet(partial / 'items.parquet')
        if histories:
            vocabulary |= id_arrays('user_ids', users)
            arrays = {'items': dataset.items, 'offsets': dataset.offsets, **feature_arrays(dataset.features)}
            optional = {'times': dataset.times, 'parts': dataset.parts}
            arrays |= {name: array for name, array in optional.items() if array is not None}
            if dataset.outside is not None:
                vocabulary |= id_arrays('outside_user_ids', dataset.outside.user_ids)
                arrays |= dataset.outside.arrays()
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, partial / HISTORIES)
            events = pl.DataFrame({'user': id_series(users), 'events': dataset.lengths})
            events.write_parquet(partial / 'users.parquet')
        save_file(vocabulary, partial / VOCABULARY)
        if followers is not None:
            save_file(followers._asdict(), partial / FOLLOWERS)


def open_model(
    path: Path, mesh: Mesh
) -> tuple[dict, RunConfig, SequenceDataset, np.ndarray, Network, dict, Followers | None]:
    """(description, config, data, item counts int64 [items + 1], network, parameters placed on the mesh, followers).

    The data has no users where the histories were left out. CheckpointError where a file is missing or not what was
    written, or where another version wrote the folder.
    """
    try:
        verify(path)
        description = json.loads((path / DESCRIPTION).read_text())
        if description['format_version'] != FORMAT_VERSION:
            raise CheckpointError(
                f'{path} was saved in format {description["format_version"]}, and this version reads {FORMAT_VERSION}: '
                'use the version of ssd4rec-jax that saved it, or save it again'
            )
        config = from_dict(description['config'])
        vocabulary = _arrays(path / VOCABULARY)
        arrays = _arrays(path / HISTORIES) if (path / HISTORIES).exists() else {}
        dataset = SequenceDataset(
            name=config.dataset, items=arrays.get('items', np.zeros(0, np.int32)),
            offsets=arrays.get('offsets', np.zeros(1, np.int64)), times=arrays.get('times'), parts=arrays.get('parts'),
            user_ids=_ids('user_ids', vocabulary) if arrays else TextIds.of([]), item_ids=_ids('item_ids', vocabulary),
            fingerprint=description['fingerprint'], time_unit=description['time_unit'],
            typical_gap=description.get('typical_gap', 0.0),
            features=features_of(description.get('features', []), arrays) if arrays else {},
        )
        if 'outside_items' in arrays:
            outside = Outside.stored(arrays, _ids('outside_user_ids', vocabulary))
            dataset = dataclasses.replace(dataset, outside=outside)
        dataset = with_split(dataset, config.data) if arrays else dataset
        network, params = _read_params(path / WEIGHTS, config, dataset.num_items, mesh)
        followers = Followers(**_arrays(path / FOLLOWERS)) if (path / FOLLOWERS).exists() else None
    except Damaged as damage:
        raise CheckpointError(f'the model in {path} is damaged: {damage}; copy it again or save it anew') from damage
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f'the model in {path} cannot be read ({first_line(error)}): copy it again') from error
    return description, config, dataset, vocabulary['item_counts'], network, params, followers


def _named_arrays(params: dict) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of each parameter, the item table in parts of at most PART_BYTES."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, array = jax.tree_util.keystr(path, simple=True, separator='.'), np.ascontiguousarray(leaf)
        if name != ITEM_EMBEDDING or array.nbytes <= PART_BYTES:
            yield name, array
            continue
        rows = max(1, PART_BYTES // array[0].nbytes)
        for number, start in enumerate(range(0, len(array), rows)):
            yield f'{name}.{number:05d}', array[start:start + rows]


def _read_params(path: Path, config: RunConfig, num_items: int, mesh: Mesh) -> tuple[Network, dict]:
    """The network and its parameters on the mesh; no process holds more of the item table than its devices do."""
    network, like = abstract_network(config.model, num_items, mesh)
    with safe_open(path, framework='np') as stored:
        names = sorted(stored.keys())
        _check_parameters(path, {name: tuple(stored.get_slice(name).get_shape()) for name in names}, like, num_items)

        def read(key: tuple, leaf: jax.ShapeDtypeStruct, place: Any) -> jax.Array:
            name = jax.tree_util.keystr(key, simple=True, separator='.')
            parts = [part for part in names if part == name or part.startswith(f'{name}.0')]
            starts = np.cumsum([0, *(stored.get_slice(part).get_shape()[0] for part in parts)]) if leaf.shape else None

            def part_of(index: tuple[slice, ...] | None) -> np.ndarray:
                if starts is None or not index:
                    return stored.get_tensor(name)
                start, stop, _ = index[0].indices(leaf.shape[0])
                # Rows beyond the table's end fill up the last device's part.
                found = host_zeros((stop - start, *leaf.shape[1:]), leaf.dtype)
                for part, (first, last) in zip(parts, itertools.pairwise(starts.tolist()), strict=True):
                    low, high = max(start, first), min(stop, last)
                    if low < high:
                        found[low - start:high - start] = stored.get_slice(part)[low - first:high - first]
                return found

            return jax.make_array_from_callback(leaf.shape, place, part_of)

        return network, jax.tree_util.tree_map_with_path(read, like, shardings(like, mesh))


def _check_parameters(
    path: Path, stored: dict[str, tuple[int, ...]], like: dict, num_items: int
) -> None:
    """CheckpointError where a parameter of the network is missing, of another shape, or unknown to the network."""
    wanted = {
        jax.tree_util.keystr(key, simple=True, separator='.'): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    wanted[ITEM_EMBEDDING] = (num_items + 1, *wanted[ITEM_EMBEDDING][1:])  # without the padding of this mesh
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in stored.items():
        whole = ITEM_EMBEDDING if name.startswith(f'{ITEM_EMBEDDING}.') else name
        found[whole] = (found[whole][0] + shape[0], *shape[1:]) if whole in found else shape
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f'{path} is of another version of the network: {name} is {found.get(name) or "missing"} there and '
                f'{wanted.get(name) or "unknown"} here. Use the version of ssd4rec-jax that saved it, or train it anew'
            )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework='np') as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)


def id_arrays(name: str, ids: np.ndarray | TextIds) -> dict[str, np.ndarray]:
    """Ids as a folder stores them, by the names of the arrays."""
    ids = stored_ids(ids)
    if isinstance(ids, TextIds):
        return {f'{name}.offsets': np.ascontiguousarray(ids.offsets), f'{name}.bytes': np.ascontiguousarray(ids.bytes)}
    return {name: np.ascontiguousarray(ids)}


def _ids(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray | TextIds:
    return arrays[name] if name in arrays else TextIds(arrays[f'{name}.offsets'], arrays[f'{name}.bytes'])


def id_series(ids: np.ndarray | TextIds) -> pl.Series:
    """Ids as a column."""
    ids = stored_ids(ids)
    return ids.series() if isinstance(ids, TextIds) else pl.Series(ids)
