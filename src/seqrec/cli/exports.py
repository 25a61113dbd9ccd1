"""The command that writes a run in the format of other programs. It imports torch when it runs."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from seqrec.cli.console import output, write_json
from seqrec.cli.flags import INPUT, OUTPUT, Json, with_flags
from seqrec.run.outputs import check_outputs


@with_flags
def export_command(
    run: Annotated[Path, Parameter(group=INPUT)],
    *,
    onnx: Annotated[Path, Parameter(group=OUTPUT)],
    top_k: Annotated[int | None, Parameter(group=OUTPUT)] = None,
    keep_seen: Annotated[bool | None, Parameter(group=OUTPUT)] = None,
    counts: Annotated[Literal["auto", "off"], Parameter(group=OUTPUT)] = "auto",
    json: Json = None,
) -> None:
    """Write a run as an ONNX file.

    Args:
        run: Run folder.
        onnx: File to write. The ids of the items are written beside it, to FILE.ids.json.
        top_k: Let the file return this many best items and their scores. By default it returns the scores of all items.
        keep_seen: With --top-k, also return items of the history; --keep-seen=false leaves them out. By default as in
            the run's validation.
        counts: auto: add the run's transition counts, if it has them; off: leave them out.
    """
    from seqrec.export.write import export_onnx, ids_path

    check_outputs(onnx, ids_path(onnx), json, run=run)
    console = output(json)
    done = export_onnx(run, onnx, top_k=top_k, keep_seen=keep_seen, counts=counts)
    facts = done.metadata
    added = " with transition counts" if facts["transition_counts"] == "yes" else ""
    console.print(
        f"{done.file}: {facts['model']}{added}, {done.size / 2**20:.1f} MiB. For a few users, its scores differ from "
        f"those of the run by at most {done.difference:.1g}.",
        soft_wrap=True,
    )
    console.print(f"{done.ids}: the ids of {int(facts['num_items']):,} items", soft_wrap=True)
    write_json(json, {"file": str(done.file), "ids": str(done.ids), "bytes": done.size, **facts})
