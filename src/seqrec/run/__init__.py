"""The run folder: what training writes and everything else reads. No pickle anywhere."""
