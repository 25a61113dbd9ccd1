"""From a log to batches."""
