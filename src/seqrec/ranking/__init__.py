"""Ranking: scores, the best items, metrics and the protocols that use them."""
