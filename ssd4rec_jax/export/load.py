"""Recommend with an exported model: needs jax, numpy, safetensors and flatbuffers (which jax.export reads with).

    python load.py '["item 3", "item 4"]'       # JSON lists of item ids, the oldest first; a line of answers for each
    from load import Model
    Model('FOLDER').recommend([['item 3', 'item 4']], k=10, exclude_seen=True)    # [[(id, score), ...]]
"""
import hashlib
import itertools
import json
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

AT_ONCE = 64  # histories that are read together


class Model:
    """The model of a folder. ids: those of its items, in order. ValueError where a file is not what was written."""

    def __init__(self, folder: str | Path = Path(__file__).parent):
        folder = Path(folder)
        for name, (_, digest) in json.loads((folder / 'manifest.json').read_text()).items():
            with open(folder / name, 'rb') as file:
                if hashlib.file_digest(file, 'sha256').hexdigest() != digest:
                    raise ValueError(f'{folder / name} is damaged: copy the folder again')
        self.about = json.loads((folder / 'export.json').read_text())
        if self.about['dtype'] == 'float64':
            jax.config.update('jax_enable_x64', True)
        platform = 'cuda' if jax.default_backend() == 'gpu' else jax.default_backend()
        self._multiple = self.about['token_multiple']
        program = export.deserialize(bytearray((folder / f'encoder.{platform}.bin').read_bytes()))
        self._encode, items = jax.jit(program.call), load_file(folder / 'items.safetensors')
        self._vectors, self._counts = jax.device_put(items['vectors']), items['counts']
        self._weights = {'item_embedding': self._vectors, **jax.device_put(load_file(folder / 'weights.safetensors'))}
        self._terms = load_file(folder / 'terms.safetensors')
        text, ends = items['ids.bytes'].tobytes(), items['ids.offsets'].tolist()
        texts = [text[start:stop].decode() for start, stop in itertools.pairwise(ends)]
        self.ids = [int(t) for t in texts] if self.about['integer_ids'] else texts
        self._number = {text: number for number, text in enumerate(texts, 1)}

    def recommend(self, histories: list, k: int = 10, exclude_seen: bool = False) -> list[list[tuple]]:
        """The k best of each history of ids, (id, score); without a known item the most frequent ones, with counts."""
        found, read = [], self._read(histories)
        for whole in (read[start:start + AT_ONCE] for start in range(0, len(read), AT_ONCE)):
            scores = self._scores(whole)
            scores[:, 0] = -np.inf
            for row, history in zip(scores, whole if exclude_seen else [], strict=False):
                row[history] = -np.inf
            best, at = map(np.asarray, jax.lax.top_k(scores, min(k, len(self.ids))))
            rows = zip(at[:len(whole)].tolist(), best[:len(whole)].tolist(), strict=True)
            found += [[(self.ids[n - 1], s) for n, s in zip(*row, strict=True) if s > -np.inf] for row in rows]
        return found

    def vectors(self, histories: list) -> np.ndarray:
        """[histories, D]: their products with the vectors of the items are the scores, but for what the terms add."""
        return np.asarray(self._readouts(self._read(histories)))[:len(histories)]

    def _read(self, histories: list) -> list[np.ndarray]:
        numbers = [[self._number.get(str(id_).strip(), 0) for id_ in history] for history in histories]
        if unknown := sum(row.count(0) for row in numbers):
            warnings.warn(f'{unknown} ids are not known and are left out', stacklevel=3)
        return [np.array([n for n in row if n], np.int32) for row in numbers]

    def _readouts(self, histories: list[np.ndarray]) -> jax.Array:
        read = [history[-self.about['max_history']:] for history in histories]  # -0 begins at the start
        slots, tokens = 1 << (len(read) - 1).bit_length(), sum(map(len, read))
        padded = self._multiple << (max(tokens - 1, 0) // self._multiple).bit_length()
        items, lengths = np.zeros(padded, np.int32), np.zeros(slots, np.int32)
        items[:tokens], lengths[:len(read)] = np.concatenate(read), [len(history) for history in read]
        return self._encode(self._weights, items, lengths)

    def _scores(self, histories: list[np.ndarray]) -> np.ndarray:
        terms, readouts = self._terms, self._readouts(histories)
        scores = np.array(jax.numpy.matmul(readouts, self._vectors.T, precision='highest'))
        for row, history in zip(scores, histories, strict=False):
            read = history[-self.about['max_history']:][::-1]  # the newest first
            held, age, times = np.unique(read, return_index=True, return_counts=True)
            if 'seen.age' in terms:
                row[held] += (terms['seen.age'][np.searchsorted(terms['seen.ages'], age + 1, 'right') - 1]
                              + terms['seen.times'][np.searchsorted(terms['seen.counts'], times, 'right') - 1])
            if 'followers.items' in terms:
                newest, fading = read[:len(terms['followers.fading'])], terms['followers.fading'][:len(read), None]
                added = np.zeros(len(row), fading.dtype)
                np.add.at(added, terms['followers.items'][newest], terms['followers.strength'][newest] * fading)
                added[held] *= 'seen.age' in terms  # without them, what is held gets nothing
                row += added
            if not len(read):
                row[:] = self._counts
        return scores


if __name__ == '__main__':
    for answer in Model().recommend([json.loads(text) for text in sys.argv[1:]]):
        print(json.dumps(answer))
