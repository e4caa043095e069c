"""One door for tables: what a file holds is recognised, polars parses it, and what it refuses is explained."""
