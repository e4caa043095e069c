"""The bytes that the devices of a mesh send one another in a train step, as devices and rows grow together.

The bytes are read from the compiled program. Seconds are not measured, because simulated devices share the cores of the
machine.
"""
import dataclasses
from collections.abc import Sequence

import jax

from experiments.compiled.collectives import collectives
from experiments.compiled.step import trace_step
from pallas_kernels.compiled.hlo import Module
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.packing import StepShape

DEVICES = 1, 2, 4, 8
# (loss, items, whether all devices share the table): KuaiRand-Pure's catalogue, and one with a sampled softmax.
FORMS = ('full', 7_111, False), ('full', 7_111, True), ('sampled', 1_000_000, True)
TOKENS, SEGMENTS = 2048, 64


def measure_weak_scaling(
    config: RunConfig, forms: Sequence[tuple[str, int, bool]] = FORMS, counts: Sequence[int] = DEVICES
) -> list[dict]:
    """The bytes that each device sends in a step with one row of TOKENS tokens per device, and the state it holds.

    forms: (loss, items, whether all devices share the table). counts: numbers of devices.
    """
    return [_bytes_of(config, *form, devices) for form in forms for devices in counts]


def _bytes_of(config: RunConfig, loss: str, items: int, shared: bool, count: int) -> dict:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, loss=loss))
    shards = count if shared else 1
    step = trace_step(config, items, StepShape(count, TOKENS, SEGMENTS), jax.devices()[:count], shards)
    found = collectives(Module.parse(step.lowered.compile().as_text() or ''), count)
    by_kind: dict[str, float] = {}
    for c in found:
        by_kind[c.kind] = by_kind.get(c.kind, 0.0) + c.wire_bytes
    return {
        'loss': loss, 'items': items, 'devices': count, 'model_shards': shards, 'state_bytes': step.state_bytes,
        'sent_bytes': sum(by_kind.values()), 'by_kind': by_kind,
    }
