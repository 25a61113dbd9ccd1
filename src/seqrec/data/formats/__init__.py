"""File formats: reading logs and descriptions of items, and writing tables."""
