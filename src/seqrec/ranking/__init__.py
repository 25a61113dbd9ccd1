"""Ranking: scores, best items, metrics and evaluation protocols."""
