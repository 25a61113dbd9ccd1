"""Training: losses, the optimizer, the loop and its checkpoints."""
