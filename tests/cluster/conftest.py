"""Settings of Ray for the clusters of these tests."""

import os

# Ray gives way to all other processes by default (niceness 15), so that on a busy machine workers would hardly start.
os.environ.setdefault("RAY_worker_niceness", "0")
