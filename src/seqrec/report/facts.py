"""Sections of a report about what was given: the log, its split, the configuration, and how to repeat a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np

from seqrec.report.charts import lengths_figure
from seqrec.report.content import RunContent
from seqrec.report.html import Html, table, tag
from seqrec.report.quality import Show
from seqrec.report.svg import Picture
from seqrec.report.tables import statistics_rows

_ADVICE = (
    "LOG stands for the log file, which a run folder does not name. Add the options with which it was read, if any"
)


def log_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """Statistics of each log, and how it was split."""
    logs: dict[str, list[RunContent]] = {}
    for run in runs:
        logs.setdefault(run.config.fingerprint, []).append(run)
    parts = []
    for number, group in enumerate(logs.values(), start=1):
        first = group[0]
        lengths = np.diff(first.dataset.offsets)
        picture = Picture(
            f"lengths-{number}", "Users by length of the history.",
            f"Number of users by length of the history: median {np.median(lengths):g}, longest {lengths.max():,}.",
            partial(lengths_figure, lengths),
        )  # fmt: skip
        if len(logs) > 1:
            parts.append(tag("h3", f"Log of {', '.join(run.label for run in group)}"))
        caption = "The log, as read and as kept by the filters"
        numbers = table(caption, ["", "read", "kept"], statistics_rows(first.dataset))
        parts.append(tag("div", tag("div", numbers), show(picture), class_="pair"))
        said = dict.fromkeys(line for run in group for line in run.split.check().lines())
        parts += [tag("p", f"{line[:1].upper()}{line[1:]}.") for line in said]
    return parts


def repeat_section(runs: Sequence[RunContent]) -> list[Html]:
    """For each run, what the weights were trained on, the command that repeats it, and its configuration."""
    notes = f"{_ADVICE}{', and --items FILE if titles came from a file' if _described(runs) else ''}."
    parts = [
        tag("p", "The same log, options, seed and number of threads give the same weights, byte for byte. ", notes)
    ]
    for run in runs:
        if len(runs) > 1:
            parts.append(tag("h3", run.label))
        parts.append(
            tag("pre", tag("code", run.command), tabindex="0", role="region", aria_label=f"Command for {run.label}")
        )
        if run.stopped_by_time:
            parts.append(
                tag(
                    "p",
                    "A time limit ended this training, so a repetition comes close but is not the same.",
                    class_="note",
                )
            )
        shown = json.dumps(asdict(run.config), indent=2, ensure_ascii=False)
        config = tag("pre", tag("code", shown), tabindex="0", role="region", aria_label=f"Configuration of {run.label}")
        parts.append(tag("details", tag("summary", "The whole configuration"), config))
    return parts


def _described(runs: Sequence[RunContent]) -> bool:
    return any(run.dataset.item_table is not None for run in runs)
