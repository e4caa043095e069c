"""The flag that says how devices share the item table, for every command that has one."""
from absl import flags

MODEL_SHARDS = flags.DEFINE_integer(
    'model_shards', 1, 'Devices that share one copy of the item table and of its optimiser state.', lower_bound=1
)
