"""The settings of a run, one frozen dataclass per section: data, model, train, loss; `run` holds them together."""
