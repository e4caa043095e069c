"""Studies: grids of trainings that are run cell by cell, and their tables and figures."""
