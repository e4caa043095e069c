"""SSD4Rec in JAX: model, data, training and evaluation. Knows no flags; `experiments` holds the commands."""
