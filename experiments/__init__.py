"""Commands: flags and a data set's configuration become frozen dataclasses and one call of the library."""
