"""SSD4Rec in JAX: data, networks, training, ranking, and the commands that users run."""
