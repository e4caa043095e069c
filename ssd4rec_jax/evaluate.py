"""Full ranking of every user's held-out item."""
import functools

import jax
import numpy as np
from jax.sharding import PartitionSpec

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import StepShape, choose_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.losses import map_scores
from ssd4rec_jax.mesh import AXES, ITEM_TABLE, MODEL_AXIS, over_devices, local_rows, place_rows, rows_here, shardings, specs
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.out_of_memory import explain_out_of_memory
from ssd4rec_jax.ranking import ranking_metrics, ranks
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.processes import sum_over_processes
from ssd4rec_jax.network import Network
from ssd4rec_jax.table_shard import TableShard, item_numbers


class Ranker:
    """Ranks the target of every example over the whole catalogue; no item masked, nothing dropped out.

    Seen items stay in the ranking and item 0 never ranks. longest: the examples that size the packed steps, as
    targets_per_step and tokens_per_row do in training; no history ranked later may be longer than theirs. So one
    compiled program serves both splits: a user's test history is the validation history and one item more.
    """

    def __init__(
        self, network: Network, mesh, longest: ExampleIndex, *,
        targets_per_step: int, tokens_per_row: int, reporter: Reporter = Reporter(),
    ):
        self.mesh = mesh
        self.shape: StepShape = choose_step_shape(
            longest.lengths, targets_per_step=targets_per_step, tokens_per_row=tokens_per_row,
            row_multiple=mesh.size,
        )
        self.reporter = reporter
        self._network = network
        self._tokens = int(longest.lengths.sum())
        self._item_table = jax.jit(lambda params: network.bind(params).item_table())
        self._jitted = jax.jit(self._rank_step)
        self._compiled = None

    def ranks(self, params: dict, examples: ExampleIndex) -> np.ndarray:
        """int64 [examples], rank from 1 of each example's target; TrainingError where a score is not finite."""
        found = np.zeros(len(examples), np.int64)
        plan = plan_epoch(examples.lengths, self.shape, seed=0, epoch=0, shuffle=False)
        params = self._network.split(params, self.mesh)
        params = jax.device_put(params, shardings(params, self.mesh))
        with explain_out_of_memory('evaluation'):
            table = self._item_table(params) if self._projects_table(params) else None
            for batch in step_loader(examples, plan, rows=rows_here(self.mesh, self.shape.rows)):
                device_batch = place_rows(batch, self.mesh, self.shape.rows)
                if self._compiled is None:
                    self.reporter.note(self._cost(params, examples))
                    with self.reporter.compiling('the evaluation step'):
                        self._compiled = self._jitted.lower(params, table, device_batch).compile()
                rank, finite = (local_rows(a) for a in self._compiled(params, table, device_batch))
                real = batch.example_ids >= 0
                if not finite[real].all():
                    example = int(batch.example_ids[real][~finite[real]][0])
                    raise TrainingError(
                        f'the model gives scores that are not finite (user number {example}); a rank would mean '
                        'nothing. The checkpoint comes from a run that diverged: lower train.learning_rate'
                    )
                found[batch.example_ids[real]] = rank[real]
        found = sum_over_processes(found)
        if not found.all():
            raise AssertionError(f'{np.sum(found == 0)} examples were not ranked')
        return found

    def _cost(self, params: dict, examples: ExampleIndex) -> str:
        operations = 2 * len(examples) * self._network.num_items * params[ITEM_TABLE].shape[1]
        return (
            f'evaluation: {len(examples):,} histories, each ranked exactly among {self._network.num_items:,} items, '
            f'{operations:.1e} FLOP of scores on {self.mesh.size} device(s)'
        )

    def _projects_table(self, params: dict) -> bool:
        """Whether every item's projection is made once, for all batches."""
        return self.mesh.shape[MODEL_AXIS] == 1 and self._network.bind(params).table_is_less_work(self._tokens)

    def _rank_step(self, params, table, batch):
        """(params, item table or None, batch) -> rank int32 [rows, segments], finite bool [rows, segments]."""
        rows, whole = PartitionSpec(AXES), PartitionSpec()
        body = functools.partial(_rank_body, self._network, self._network.table(self.mesh))
        return over_devices(body, self.mesh, (specs(params), whole, rows), rows)(params, table, batch)

    def metrics(self, params: dict, examples: ExampleIndex) -> dict[str, float]:
        """HR, NDCG and MRR at 10 and 20 over all examples."""
        return ranking_metrics(self.ranks(params, examples))


def _rank_body(network: Network, shard: TableShard, params, table, batch):
    """Per-device body; every device scores its part of the items for the readouts of all devices along `model`."""
    embedding, items = None, batch.items
    if shard.shards > 1:
        embedding = params[ITEM_TABLE]
        ids, items = item_numbers(shard, items)
        params = {**params, ITEM_TABLE: shard.fetch(embedding, ids)}
    model = network.bind(params)
    readout = model.readout(items, Layout.of(batch), table=table)
    readouts, targets = (shard.gather(a) for a in (readout.reshape(-1, readout.shape[-1]), batch.targets.reshape(-1)))
    scored = model.item_embedding[...] if embedding is None else embedding
    rank, finite = map_scores(functools.partial(ranks, shard=shard), readouts, scored, targets)
    return tuple(shard.own(a).reshape(batch.targets.shape) for a in (rank, finite))
