"""Raw log → Interactions → SequenceDataset → ExampleIndex → EpochPlan → PackedBatch. NumPy and polars only, no JAX."""
