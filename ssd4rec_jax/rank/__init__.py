"""Ranking: the one scorer that evaluation and recommendation share, the metrics, and the baselines to compare with."""
