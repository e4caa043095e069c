"""AdamW with clipping and a list of learning rates, written out in NumPy."""
from collections.abc import Callable

import numpy as np


def adamw_by_hand(params, *, rates, decay=0.0, clip=np.inf) -> Callable[[list], list]:
    """A function that takes the gradients of one more step and returns the parameters after it (float64 lists)."""
    params = [np.asarray(p, np.float64) for p in params]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    steps = enumerate(rates, start=1)

    def update(grads: list) -> list:
        step, rate = next(steps)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        for k, g in enumerate(grads):
            g = g * min(1.0, clip / norm)
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            mean, square = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
            params[k] = params[k] - rate * (mean / (np.sqrt(square) + 1e-8) + decay * params[k])
        return list(params)

    return update
