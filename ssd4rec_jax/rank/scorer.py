"""The one way to score: histories -> readouts -> f(scores over the whole catalogue), on any mesh."""
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.data.packing import PackedBatch, StepShape, build_step, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.model.networks import item_vectors
from ssd4rec_jax.model.scores import MAX_SCORES, map_scores, scores_at_once
from ssd4rec_jax.model.seen import Seen, seen_by_histories
from ssd4rec_jax.parallel.mesh import (
    AXES,
    ITEM_EMBEDDING,
    MODEL_AXIS,
    by_item,
    local_rows,
    over_devices,
    place_rows,
    replicated,
    rows_here,
    shardings,
    specs,
)
from ssd4rec_jax.parallel.out_of_memory import explain_out_of_memory
from ssd4rec_jax.parallel.processes import sum_over_processes
from ssd4rec_jax.parallel.table_shard import TableShard, item_numbers
from ssd4rec_jax.rank.followers import follower_scores, newest_items
from ssd4rec_jax.reporter import Reporter


class Prepared(NamedTuple):
    """What all batches share: parameters on the mesh, the network's item_table or None, the followers or None."""

    params: dict
    table: Any
    followers: Followers | None


class Scorer:
    """Applies a function f to the scores of many histories, in packed steps; the program for each f and shape is kept.

    There is no masking and no dropout. The item table may be split over devices; each device then scores its part of
    the items for the readouts of all devices along `model`. followers: adds to the scores of what often followed the
    newest items of a history (see ssd4rec_jax.rank.followers); None adds nothing. What the history holds gets it only
    where the network has a seen-item term, which has learned whether items come back.
    """

    def __init__(
        self, network: Network, mesh: Mesh, *, followers: Followers | None = None, reporter: Reporter | None = None
    ):
        self.network, self.mesh = network, mesh
        self.rank_with(followers)
        self.reporter = reporter or Reporter()
        self._item_table = jax.jit(lambda params: network.bind(params).item_table())
        self._compiled: dict[Hashable, Any] = {}

    def rank_with(self, followers: Followers | None) -> None:
        """What is prepared from now on ranks with these followers."""
        self._followers = None  # There may be no memory for two tables.
        self._followers = None if followers is None else jax.device_put(followers, replicated(self.mesh))

    def prepare(self, params: dict, tokens: int) -> Prepared:
        """Place parameters on the mesh; their item table may be whole or padded.

        tokens: the number of tokens that will be read with them altogether, which decides whether projecting the item
        table pays.
        """
        params = self.network.split(params, self.mesh)
        params = jax.device_put(params, shardings(params, self.mesh))
        with explain_out_of_memory('evaluation'):
            table = self._item_table(params) if self._projects_table(params, tokens) else None
            return Prepared(params, table, self._followers)

    def __call__(
        self, prepared: Prepared, examples: ExampleIndex, shape: StepShape, f: Callable[..., Any],
        arguments: Callable[[PackedBatch], tuple[np.ndarray, ...]], *, per_item: tuple[np.ndarray, ...] = (),
        about: str = '',
    ) -> tuple[np.ndarray, ...]:
        """The results of f for each history of `examples`: arrays [examples, ...] on every process.

        f(scores float32 [n, held], *arguments [n, ...], shard=TableShard) -> (*results [n, ...], finite bool [n]) must
          treat each row independently. Of a split table it sees the scores of this device's items only, and combines
          devices through `shard`. It must be hashable; equal functions are compiled once.
        arguments: makes f's further arguments [rows, segments, ...] from a packed batch.
        per_item: arrays [items + 1, ...] with one entry per item. Where there are any, f gets this device's parts
          [held, ...] of them as `per_item`.
        about: a sentence for the user, reported when f is compiled.

        Raises TrainingError where `finite` is False for a history.
        """
        placed = tuple(self._by_item(array) for array in per_item)
        found: tuple[np.ndarray, ...] = ()
        for batch, results in self._run(prepared, examples, shape, f, arguments, placed, about):
            *results, finite = results
            real = batch.example_ids >= 0
            if not finite[real].all():
                example = int(batch.example_ids[real][~finite[real]][0])
                raise TrainingError(
                    f'the model gives scores that are not finite (user number {example}); a rank would mean '
                    'nothing. The training diverged: lower train.learning_rate'
                )
            found = found or tuple(np.zeros((len(examples), *r.shape[2:]), r.dtype) for r in results)
            for whole, part in zip(found, results, strict=True):
                whole[batch.example_ids[real]] = part[real]
        return tuple(sum_over_processes(array) for array in found)

    def readouts(self, prepared: Prepared, examples: ExampleIndex, shape: StepShape) -> np.ndarray:
        """The network's readout for each history of `examples`: float32 [examples, D] on every process."""
        found = np.zeros((len(examples), prepared.params[ITEM_EMBEDDING].shape[1]), np.float32)
        for batch, (readout,) in self._run(prepared, examples, shape, None, lambda _: (), (), ''):
            real = batch.example_ids >= 0
            found[batch.example_ids[real]] = readout[real]
        return sum_over_processes(found)

    def _run(self, prepared, examples, shape, f, arguments, per_item, about):
        """Yields (packed batch, the rows of the results that this process holds) for each packed step of `examples`."""
        plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0, shuffle=False)
        rows = rows_here(self.mesh, shape.rows)
        with explain_out_of_memory('evaluation'):
            # Starting the loader, which reads ahead, takes longer than a single step.
            one_step = plan.num_steps == 1
            batches = [build_step(examples, plan, 0, rows)] if one_step else step_loader(examples, plan, rows=rows)
            for batch in batches:
                args = tuple(place_rows(a, self.mesh, shape.rows) for a in (batch, arguments(batch)))
                program = self._program(f, shape, prepared, args, per_item, about)
                yield batch, [local_rows(a) for a in program(*prepared, *args, per_item)]

    def _program(self, f, shape, prepared, args, per_item, about):
        given = jax.tree.structure((prepared.table, prepared.followers, args))
        key = f, shape, given, tuple((a.shape, a.dtype) for a in (*args[1], *per_item))
        if key not in self._compiled:
            if about:
                self.reporter.note(about)
            with self.reporter.compiling('the evaluation step'):
                self._compiled[key] = self.lower(f, prepared, args, per_item).compile()
        return self._compiled[key]

    def lower(
        self, f: Callable[..., Any] | None, prepared: Prepared, args: tuple, per_item: tuple = ()
    ) -> jax.stages.Lowered:
        """The program for f, lowered; everything may be shapes (jax.ShapeDtypeStruct) instead of arrays.

        args: a packed batch and f's further arguments [rows, segments, ...]. per_item: as in __call__.
        """
        return jax.jit(functools.partial(self._step, f)).lower(*prepared, *args, per_item)

    def _projects_table(self, params: dict, tokens: int) -> bool:
        """Whether the network's item_table is computed once for all batches."""
        model = self.network.bind(params)
        return self.mesh.shape[MODEL_AXIS] == 1 and hasattr(model, 'item_table') and model.table_is_less_work(tokens)

    def _by_item(self, array: np.ndarray) -> jax.Array:
        """An array with one entry per row of the item table, padded and split like the table."""
        shard = self.network.shard(self.mesh)
        padded = np.pad(array, [(0, shard.padded - len(array))] + [(0, 0)] * (array.ndim - 1))
        return jax.make_array_from_callback(padded.shape, by_item(self.mesh), lambda part: padded[part])

    def _step(self, f, params, table, followers, batch, args, per_item):
        rows, whole, items = PartitionSpec(AXES), PartitionSpec(), PartitionSpec(MODEL_AXIS)
        body = functools.partial(_score, self.network, self.network.shard(self.mesh), f, scores_at_once(self.mesh))
        mapped = over_devices(body, self.mesh, (specs(params), whole, whole, rows, rows, items), rows)
        return mapped(params, table, followers, batch, args, per_item)


def _score(network: Network, shard: TableShard, f, max_scores: int, params, table, followers, batch, args, per_item):
    """The computation of one device, which scores its items for the readouts of all devices along `model`.

    Without f it returns the readouts of this device, in float32.
    """
    embedding, items, layout = None, batch.items, Layout.of(batch)
    if shard.shards > 1:
        embedding = params[ITEM_EMBEDDING]
        ids, items = item_numbers(shard, items)
        params = {**params, ITEM_EMBEDDING: shard.fetch(embedding, ids)}
    model = network.bind(params)
    shared = {} if table is None else {'table': table}
    readout = model.readout(items, layout, **shared)
    if f is None:
        return (readout.astype(jnp.float32),)
    slots = readout.shape[:2]

    def of_all_devices(a):
        return shard.gather(a.reshape(slots[0] * slots[1], *a.shape[2:]))

    readouts, *rest = map(of_all_devices, (readout, *args))
    rows = model.item_embedding[...] if embedding is None else embedding
    seen, newest = None, None
    if hasattr(model, 'seen') or followers is not None:
        seen = seen_by_histories(batch.items, layout).one_list(slots[1]).of_all_devices(shard, slots[0] * slots[1])
    if followers is not None:
        newest = of_all_devices(newest_items(batch.items, layout))
    results = of_scores(f, model, rows, shard, readouts, rest, seen, newest, followers, per_item, max_scores)
    return tuple(shard.own(a).reshape(*slots, *a.shape[1:]) for a in results)


def of_scores(
    f: Callable[..., Any], model: Any, rows: jax.Array, shard: TableShard, readouts: jax.Array,
    args: Sequence[jax.Array], seen: Seen | None, newest: jax.Array | None, followers: Followers | None,
    per_item: tuple[jax.Array, ...] = (), max_scores: int = MAX_SCORES,
) -> Any:
    """f(scores, *args, shard=, per_item=) of the scores [n, held] that readouts [n, D] give this device's items.

    f: as in Scorer. rows: this device's part of the item table. seen: what the histories hold, where the network has a
    seen-item term or there are followers. newest: int32 [n, NEWEST], their newest items, where there are followers.
    max_scores: how many scores are in memory at once.
    """
    f = functools.partial(f, shard=shard, **({'per_item': per_item} if per_item else {}))
    bias = None
    if hasattr(model, 'seen'):
        assert seen is not None
        bias = model.seen.bias, seen
    if followers is not None:
        assert seen is not None and newest is not None
        args = [jnp.arange(len(readouts)), newest, *args]
        f = functools.partial(_with_followers, f, followers, shard, None if bias else seen)
    return map_scores(f, readouts, item_vectors(model, rows), *args, seen=bias, max_scores=max_scores)


def _with_followers(f, followers, shard: TableShard, left_out: Seen | None, scores, number, newest, *args):
    """f of scores [n, held] with the follower term; number: int32 [n], which of all readouts they are.

    left_out: what gets nothing from it.
    """
    added = follower_scores(newest, followers, shard)
    if left_out is not None:
        added = left_out.part(first_readout=number[0]).clear(added)
    return f(scores + added, *args)
