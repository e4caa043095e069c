"""The run folder: its files, checkpoints, log, and how a saved run is opened again."""
