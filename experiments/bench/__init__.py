"""The measurements of python -m experiments.benchmark, one file per subject."""
