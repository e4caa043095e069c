"""The folder of an export: what every format writes into it, and which folders it may replace."""
import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssd4rec_jax.config.run import to_dict
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.run.manifest import MANIFEST, Damaged, verified_json
from ssd4rec_jax.run.saved_run import SavedRun
from ssd4rec_jax.run.whole_folder import whole_folder

FORMAT_VERSION = 1
DESCRIPTION = 'export.json'
# All that the formats write; an export replaces one of another format too.
FILES = {
    DESCRIPTION, MANIFEST, 'load.py', 'encoder.cpu.bin', 'encoder.cuda.bin', 'encoder.tpu.bin', 'weights.safetensors',
    'items.safetensors', 'terms.safetensors', 'items.parquet', 'vectors.npy', 'items.usearch',
}
PROMISED_DAYS = 182  # for which JAX promises to read what it exported


@contextlib.contextmanager
def export_folder(
    path: Path, saved: SavedRun, kind: str, about: dict[str, Any]
) -> Iterator[Path]:
    """A folder to fill with an export, which appears whole and replaces only another export; see whole_folder.

    kind: the name of the format. about: what its readers need to know beside what is always said: config, counts,
    fingerprint of the data, versions and dates.
    """
    if path.is_dir() and any(path.iterdir()):
        try:
            verified_json(path, DESCRIPTION)
        except Damaged as error:
            raise UserError(f'{path} is not empty and no export ({error}): name another folder') from error
    today = datetime.date.today()
    description = {
        'format': kind, 'format_version': FORMAT_VERSION, 'config': to_dict(saved.config), 'step': saved.step,
        'best_epoch': saved.best_epoch, 'fingerprint': saved.dataset.fingerprint, 'items': saved.dataset.num_items,
        'versions': {'python': sys.version.split()[0], 'jax': jax.__version__, 'numpy': np.__version__},
        'exported': today.isoformat(),
        'readable_until': (today + datetime.timedelta(days=PROMISED_DAYS)).isoformat(), **about,
    }
    with whole_folder(path, FILES, 'an export') as partial:
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False) + '\n')
        yield partial
