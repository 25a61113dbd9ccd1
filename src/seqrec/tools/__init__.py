"""Commands that stand beside training: compare, bench, demo."""
