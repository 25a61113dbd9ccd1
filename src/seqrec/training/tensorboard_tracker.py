"""TensorBoard as a tracker: a folder of event files per training, below one folder for all of them."""

import itertools
import os
import re
import shlex
import socket
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from seqrec.errors import InputError, missing_extra

#: Environment variable that names the folder of all trainings, as in Hugging Face's transformers.
FOLDER = "TENSORBOARD_LOGGING_DIR"
KEY = "seqrec_key"


def import_tensorboard() -> None:
    """Import TensorBoard.

    Raises:
        InputError: it is not installed.
    """
    try:
        import tensorboard.backend.event_processing.event_accumulator
        import tensorboard.compat.proto.event_pb2
        import tensorboard.plugins.hparams.summary_v2
        import tensorboard.plugins.text.summary_v2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise missing_extra("track tensorboard", "tensorboard") from error


class TensorBoardTracker:
    """A folder of event files. Each step is appended as a whole, so that a killed process leaves whole steps.

    Args:
        out: run folder, beside which the folder of all trainings is by default.
        above: folder of the record above it, if there is one.

    Raises:
        InputError: TensorBoard is not installed, or its folder can't be used.
    """

    title = "TensorBoard"

    def __init__(self, out: Path | None, above: str = "") -> None:
        import_tensorboard()
        given = above or os.environ.get(FOLDER)
        self._shown = Path(given) if given else (Path() if out is None else out.parent) / "tensorboard"
        self._root = Path(os.path.realpath(self._shown))
        self._folder, self._file = self._root, ""
        if out is not None and self._root.is_relative_to(out):
            raise InputError(f"{self._root}: is in the run folder; set {FOLDER} to another folder")
        if self._root.exists() and not self._root.is_dir():
            raise InputError(f"{self._root}: is a file; set {FOLDER} to a folder")

    def begin(self, key: str, name: str, resume: bool) -> dict[str, set[int]]:
        """Start a folder, or go on with the last one of the same key."""
        self._file = ""
        for folder in self._folders(name) if resume else ():
            found = _read(folder)
            if _text(found, KEY) == key:
                self._folder = folder
                return {tag: {event.step for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}
        self._folder = self._new_folder(name)
        self._write_text(KEY, key, 0)
        return {}

    def _folders(self, name: str) -> list[Path]:
        """The folders with a name, the last one first."""
        pattern = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
        found = [(pattern.fullmatch(path.name), path) for path in self._root.glob("*") if path.is_dir()]
        numbered = [(int(match[1] or 1), path) for match, path in found if match is not None]
        return [path for _, path in sorted(numbered, reverse=True)]

    def _new_folder(self, name: str) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = self._root / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
        raise AssertionError

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def where(self) -> str:
        """The folder, and the command that shows it."""
        shows = shlex.join(["tensorboard", "--logdir", str(self._shown)])
        return f"TensorBoard: {self._shown / self._folder.name}; {shows} shows it"

    def write_options(self, options: Mapping[str, Any]) -> None:
        """Write hparams. Options that are None are left out, because a column there has one type."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        self._write(hparams_pb({name: value for name, value in options.items() if value is not None}), 0)

    def write_texts(self, title: str, texts: Mapping[str, str], step: int) -> None:
        """Write a table in Markdown."""
        if texts:
            cells = {name: text.replace("|", "\\|") for name, text in texts.items()}
            rows = ["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in cells.items())]
            self._write_text(title, "\n".join(rows), step)

    def _write_text(self, title: str, text: str, step: int) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(text_pb(title, text), step)

    def write_values(self, values: Mapping[str, float], step: int, moment: float) -> None:
        """Write scalars, which are float32."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Summary(value=scalars), step, moment)

    def end(self, status: str, step: int) -> None:
        """Write the status as text, and for the table of hparams if it is the last one: there the first one counts."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._write_text("status", status, step)
        if status == "FINISHED":
            over = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=over))
            tag = metadata.SESSION_END_INFO_TAG
            self._write(Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)]), 0)

    def _write(self, summary: Any, step: int, moment: float | None = None) -> None:
        """Append a summary to the event file. Opening it each time notices that the folder is gone or read-only."""
        from tensorboard.compat.proto.event_pb2 import Event

        events = [Event(wall_time=time.time() if moment is None else moment, step=step, summary=summary)]
        file, mode = self._file, "ab"
        if not file:
            seconds, rest = divmod(time.time_ns(), 10**9)
            file, mode = f"events.out.tfevents.{seconds:010}.{rest:09}.{socket.gethostname()}.{os.getpid()}", "xb"
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._file = ""  # nothing can be read after half an event, so a failure is followed by another file
        with (self._folder / file).open(mode) as opened:
            opened.write(b"".join(map(_record, events)))
        self._file = file


def _record(event: Any) -> bytes:
    """An event as it stands in a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _read(folder: Path) -> Any:
    """All events of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def _text(found: Any, title: str) -> str | None:
    """The first text with a title."""
    if title not in found.Tags()["tensors"]:
        return None
    return str(found.Tensors(title)[0].tensor_proto.string_val[0].decode())
