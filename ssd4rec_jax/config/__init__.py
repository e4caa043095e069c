"""The settings of a run: one frozen dataclass for each section (model, data, train, loss), held together by `run`."""
