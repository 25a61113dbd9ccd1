"""Data: logs, datasets, splits and batches."""
