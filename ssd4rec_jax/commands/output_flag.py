"""The flag that says where an answer is written, for every command that has one, so that all fit into one process."""
from absl import flags

OUTPUT = flags.DEFINE_string(
    'output', None, 'prepare: folder to write, data/NAME/prepared-FINGERPRINT if not given. recommend: file to write '
    '(.parquet, .csv or .jsonl), stdout if not given; with --distributed a folder. export: folder to write.'
)
