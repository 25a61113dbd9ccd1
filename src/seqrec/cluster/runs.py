"""Run folders as the processes of a cluster open them: each must see the run that the command was given."""

import hashlib
import json
import socket
from pathlib import Path

from seqrec.cluster.storage import is_url, local_copy, without_keys
from seqrec.data.saved import FACTS
from seqrec.errors import InputError
from seqrec.run.folder import DATA, Run
from seqrec.run.layout import TRANSITIONS
from seqrec.run.tensors import read_header


def open_run(location: str | Path, expected: str | None = None) -> Run:
    """Open a run folder, or a copy on this machine of the run at a URL.

    Args:
        location: folder or URL.
        expected: identity that the run must have, because other processes work with it.

    Raises:
        InputError: there is no run, or another one.
    """
    try:
        run = Run(local_copy(location))
        found = identity(run)
    except InputError as error:
        if expected is None or is_url(location):
            raise
        raise InputError(f"{error} (on {socket.gethostname()}; all machines of the cluster must share it)") from error
    if expected not in (None, found):
        raise InputError(
            f"{without_keys(location)}: was replaced by another run while it was in use; run the command again"
        )
    return run


def identity(run: Run) -> str:
    """A digest of a run's configuration, data and weights in use, which tells it from all others."""
    files = [path for path in (run.weights_path(), run.folder / TRANSITIONS) if path.exists()]
    marks = [sorted(read_header(path).metadata.items()) for path in files]
    facts = (run.folder / DATA / FACTS).read_bytes()
    return hashlib.sha256(json.dumps([run.id, marks, facts.hex()]).encode()).hexdigest()[:32]
