"""The shapes that tests, benchmarks and memory figures use, each named once."""
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike


class Workload(NamedTuple):
    """The shapes of one ssd_scan call.

    The lengths of the segments are geometrically distributed, with mean `mean_segment`. `state` is d_state.
    """

    batch: int
    length: int
    heads: int
    headdim: int
    groups: int
    state: int
    mean_segment: int

    def arrays(self, seed: int = 0, dtype: DTypeLike = np.float32) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Draw random inputs.

        Args:
          seed: of the random generator.
          dtype: of all arrays but the segment ids.

        Returns (the arguments x, dt, A, B, C and D of ssd_scan by name, segment_ids int32 [batch, length]).
        """
        rng = np.random.default_rng(seed)
        lead = self.batch, self.length
        arrays = dict(
            x=rng.normal(size=(*lead, self.heads, self.headdim)), dt=rng.uniform(1e-3, 1e-1, (*lead, self.heads)),
            A=-rng.uniform(1, 16, self.heads), B=rng.normal(size=(*lead, self.groups, self.state)),
            C=rng.normal(size=(*lead, self.groups, self.state)), D=np.ones(self.heads),
        )
        opens = rng.random(lead) < 1 / self.mean_segment
        ids = 1 + np.cumsum(opens, axis=1, dtype=np.int32)
        return {k: v.astype(dtype) for k, v in arrays.items()}, ids


WORKLOADS = {
    'kuairand': Workload(7, 8192, 32, 16, 1, 64, 50),  # the rows of the published model on KuaiRand
    'mamba1k': Workload(1, 1024, 8, 64, 1, 128, 1024),
    'mamba2k': Workload(1, 2048, 8, 64, 1, 128, 2048),
    'mamba16k': Workload(1, 16384, 8, 64, 1, 128, 16384),
    'mamba64k': Workload(1, 65536, 8, 64, 1, 128, 65536),
    'long4k': Workload(1, 4096, 32, 16, 1, 64, 4096),
    'long16k': Workload(1, 16384, 32, 16, 1, 64, 16384),
    'long64k': Workload(1, 65536, 32, 16, 1, 64, 65536),
}
