"""Flags of the commands that run many trainings, so that all of them fit into one process."""
import math

from absl import flags

STUDY = flags.DEFINE_string(
    'study', None, 'study: the name of the one to run. tune: folder of the search; runs/DATASET-study if not given. '
    'report: folder of the study to show.'
)
MINUTES = flags.DEFINE_float(
    'minutes', None, 'Minutes after which no other trial or cell begins.', lower_bound=0
)
flags.register_validator(
    'minutes', lambda minutes: minutes is None or math.isfinite(minutes), message='it takes a finite number'
)
SPACE = flags.DEFINE_string('space', None, 'TOML file of what a search may try; if not given, the one of this package.')
