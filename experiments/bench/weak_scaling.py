"""What the devices of a mesh send one another in a train step, as devices and rows grow together.

Bytes from the compiled program, not seconds: simulated devices share the machine's cores.
"""
import dataclasses

import jax

from experiments.compiled.collectives import collectives
from experiments.compiled.hlo import Module
from experiments.compiled.step import trace_step
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.packing import StepShape

DEVICES = 1, 2, 4, 8
# (loss, items, whether the table is shared by all devices): KuaiRand-Pure's catalogue, and one of which the softmax is sampled.
FORMS = ('full', 7_111, False), ('full', 7_111, True), ('sampled', 1_000_000, True)
TOKENS, SEGMENTS = 2048, 64


def measure_weak_scaling(config: RunConfig, forms=FORMS, counts=DEVICES) -> list[dict]:
    """Bytes that each device sends in a step of one row of TOKENS tokens a device, and the state that it holds."""
    return [_bytes_of(config, *form, devices) for form in forms for devices in counts]


def _bytes_of(config: RunConfig, loss: str, items: int, shared: bool, count: int) -> dict:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, loss=loss))
    shards = count if shared else 1
    step = trace_step(config, items, StepShape(count, TOKENS, SEGMENTS), jax.devices()[:count], shards)
    found = collectives(Module.parse(step.lowered.compile().as_text()), count)
    by_kind: dict[str, float] = {}
    for c in found:
        by_kind[c.kind] = by_kind.get(c.kind, 0.0) + c.wire_bytes
    return {
        'loss': loss, 'items': items, 'devices': count, 'model_shards': shards, 'state_bytes': step.state_bytes,
        'sent_bytes': sum(by_kind.values()), 'by_kind': by_kind,
    }
