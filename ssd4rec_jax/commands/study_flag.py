"""The flag that names a study, for every command that has one, so that all fit into one process."""
from absl import flags

STUDY = flags.DEFINE_string(
    'study', None, 'tune: folder of the search, runs/DATASET-study if not given. report: folder of a study to show.'
)
