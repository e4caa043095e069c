"""Ranking: one scorer under evaluation and recommending, the metrics, and the baselines to beat."""
