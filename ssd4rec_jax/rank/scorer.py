"""The one way to score: histories -> readouts -> f(scores over the whole catalogue), on any mesh."""
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import PackedBatch, StepShape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.model.scores import map_scores
from ssd4rec_jax.parallel.mesh import (
    AXES,
    ITEM_EMBEDDING,
    MODEL_AXIS,
    local_rows,
    over_devices,
    place_rows,
    rows_here,
    shardings,
    specs,
)
from ssd4rec_jax.parallel.out_of_memory import explain_out_of_memory
from ssd4rec_jax.parallel.processes import sum_over_processes
from ssd4rec_jax.parallel.table_shard import TableShard, item_numbers
from ssd4rec_jax.reporter import Reporter


class Prepared(NamedTuple):
    """Parameters on the mesh, and the network's item_table (or None), which all batches share."""

    params: dict
    table: Any


class Scorer:
    """Applies a function f to the scores of many histories, in packed steps; the program for each f and shape is kept.

    There is no masking and no dropout. The item table may be split over devices; each device then scores its part of
    the items for the readouts of all devices along `model`.
    """

    def __init__(self, network: Network, mesh: Mesh, *, reporter: Reporter | None = None):
        self.network, self.mesh = network, mesh
        self.reporter = reporter or Reporter()
        self._item_table = jax.jit(lambda params: network.bind(params).item_table())
        self._compiled: dict[Hashable, Any] = {}

    def prepare(self, params: dict, tokens: int) -> Prepared:
        """Place parameters on the mesh; their item table may be whole or padded.

        tokens: the number of tokens that will be read with them altogether, which decides whether projecting the item
        table pays.
        """
        params = self.network.split(params, self.mesh)
        params = jax.device_put(params, shardings(params, self.mesh))
        with explain_out_of_memory('evaluation'):
            return Prepared(params, self._item_table(params) if self._projects_table(params, tokens) else None)

    def __call__(
        self, prepared: Prepared, examples: ExampleIndex, shape: StepShape, f: Callable[..., Any],
        arguments: Callable[[PackedBatch], tuple[np.ndarray, ...]], *, about: str = '',
    ) -> tuple[np.ndarray, ...]:
        """The results of f for each history of `examples`: arrays [examples, ...] on every process.

        f(scores float32 [n, held], *arguments [n, ...], shard=TableShard) -> (*results [n, ...], finite bool [n]) must
          treat each row independently. Of a split table it sees the scores of this device's items only, and combines
          devices through `shard`. It must be hashable; equal functions are compiled once.
        arguments: makes f's further arguments [rows, segments, ...] from a packed batch.
        about: a sentence for the user, reported when f is compiled.

        Raises TrainingError where `finite` is False for a history.
        """
        found: tuple[np.ndarray, ...] = ()
        plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0, shuffle=False)
        with explain_out_of_memory('evaluation'):
            for batch in step_loader(examples, plan, rows=rows_here(self.mesh, shape.rows)):
                args = batch, arguments(batch)
                device_args = tuple(place_rows(a, self.mesh, shape.rows) for a in args)
                program = self._program(f, shape, prepared, device_args, about)
                *results, finite = (local_rows(a) for a in program(*prepared, *device_args))
                real = batch.example_ids >= 0
                if not finite[real].all():
                    example = int(batch.example_ids[real][~finite[real]][0])
                    raise TrainingError(
                        f'the model gives scores that are not finite (user number {example}); a rank would mean '
                        'nothing. The checkpoint comes from a run that diverged: lower train.learning_rate'
                    )
                if not found:
                    found = tuple(np.zeros((len(examples), *r.shape[2:]), r.dtype) for r in results)
                for whole, part in zip(found, results, strict=True):
                    whole[batch.example_ids[real]] = part[real]
        return tuple(sum_over_processes(array) for array in found)

    def _program(self, f, shape, prepared, device_args, about):
        key = f, shape, prepared.table is None, tuple(a.shape for a in device_args[1])
        if key not in self._compiled:
            if about:
                self.reporter.note(about)
            with self.reporter.compiling('the evaluation step'):
                step = jax.jit(functools.partial(self._step, f))
                self._compiled[key] = step.lower(*prepared, *device_args).compile()
        return self._compiled[key]

    def _projects_table(self, params: dict, tokens: int) -> bool:
        """Whether the network's item_table is computed once for all batches."""
        model = self.network.bind(params)
        return self.mesh.shape[MODEL_AXIS] == 1 and hasattr(model, 'item_table') and model.table_is_less_work(tokens)

    def _step(self, f, params, table, batch, args):
        rows, whole = PartitionSpec(AXES), PartitionSpec()
        body = functools.partial(_score, self.network, self.network.shard(self.mesh), f)
        return over_devices(body, self.mesh, (specs(params), whole, rows, rows), rows)(params, table, batch, args)


def _score(network: Network, shard: TableShard, f, params, table, batch, args):
    """The computation of one device, which scores its items for the readouts of all devices along `model`."""
    embedding, items = None, batch.items
    if shard.shards > 1:
        embedding = params[ITEM_EMBEDDING]
        ids, items = item_numbers(shard, items)
        params = {**params, ITEM_EMBEDDING: shard.fetch(embedding, ids)}
    model = network.bind(params)
    shared = {} if table is None else {'table': table}
    readout = model.readout(items, Layout.of(batch), **shared)
    slots = readout.shape[:2]
    flat = [a.reshape(slots[0] * slots[1], *a.shape[2:]) for a in (readout, *args)]
    readouts, *rest = (shard.gather(a) for a in flat)
    scored = model.item_embedding[...] if embedding is None else embedding
    results = map_scores(functools.partial(f, shard=shard), readouts, scored, *rest)
    return tuple(shard.own(a).reshape(*slots, *a.shape[1:]) for a in results)
