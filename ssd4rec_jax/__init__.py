"""SSD4Rec in JAX: data, model, training, ranking, and the commands that users run."""
