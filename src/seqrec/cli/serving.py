"""The command that serves runs over HTTP. It imports the server when it runs, not for its help."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from seqrec.cli.console import output
from seqrec.cli.flags import INPUT, with_flags
from seqrec.errors import missing_extra
from seqrec.serve.config import ServeConfig


@with_flags
def serve_command(
    run: Annotated[Path, Parameter(group=INPUT)],
    *others: Annotated[Path, Parameter(group=INPUT)],
    serving: ServeConfig | None = None,
) -> None:
    """Answer requests for recommendations, and show the web page.

    Args:
        run: Run folder. When it changes, the server takes the new run without a gap.
        others: Other run folders, to compare with the first.
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise missing_extra("seqrec serve", "serve")
    from seqrec.serve.start import serve

    console = output(None)
    serve([run, *others], serving or ServeConfig(), lambda line: console.print(line, highlight=False, soft_wrap=True))
