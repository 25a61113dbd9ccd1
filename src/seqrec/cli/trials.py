"""The commands that need no log from the user. They import torch and matplotlib when they run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from seqrec.cli.console import output, write_json
from seqrec.cli.flags import INPUT, Json, Out, with_flags
from seqrec.files import make_folder
from seqrec.run.outputs import check_outputs
from seqrec.tools.config import BenchConfig


@with_flags
def demo_command(
    *,
    out: Path = Path("runs/demo"),
    overwrite: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = None,
) -> None:
    """Train SASRec on a built-in log.

    Args:
        out: Run folder to write.
        overwrite: Replace the run in the folder.
    """
    check_outputs(json, run=out)
    console = output(json)
    from seqrec.tools.demo import run_demo

    result = run_demo(out, console, overwrite=overwrite, progress=json != "-")
    write_json(json, result)


@with_flags
def bench_command(
    log: Annotated[Path | None, Parameter(group=INPUT)] = None,
    *,
    sizes: BenchConfig | None = None,
    out: Out = None,
    json: Json = None,
) -> None:
    """Measure this machine.

    Args:
        log: Log for the main figures. By default a generated one.
        out: Folder for bench.json and bench.png.
    """
    written = [out / f"bench.{ending}" for ending in ("json", "png")] if out is not None else []
    check_outputs(*written, json, reads=[log])
    if out is not None:
        make_folder(out)  # an error must come before minutes of measuring
    console = output(json)
    from seqrec.tools.bench import measured, tables, write

    found = measured(log, sizes, console)
    console.print(*tables(found), sep="\n")
    if out is not None:
        write(found, out)
    write_json(json, found)
