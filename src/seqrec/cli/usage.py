"""One line for a command line that cannot be parsed."""

from collections.abc import Sequence
from dataclasses import fields

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from seqrec.errors import one_line


def usage_line(error: CycloptsError, arguments: Sequence[str]) -> str:
    """What is wrong with the arguments, and which command explains them."""
    command = error.command_chain[-1] if error.command_chain else ""
    text = _explained(error, command, arguments)
    return f"{text}{'' if text.endswith(('.', '?')) else '.'} See {f'seqrec {command}'.strip()} --help"


def _explained(error: CycloptsError, command: str, arguments: Sequence[str]) -> str:
    from seqrec.cli.parser import COMMANDS, model_named

    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        if error.argument.index is not None:
            return f"{command} needs {name.removeprefix('--').upper()}"
        return f"{name} needs a value" if name in arguments else f"{command} needs {name}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{command} cannot use {', '.join(error.unused_tokens)}; an option may be missing before it"
    text = one_line(error)
    if isinstance(error, UnknownCommandError):
        text = text.partition(" Available commands")[0]
        return text if text.endswith("?") else f"{text} Choose from: {', '.join(COMMANDS)}."
    if not isinstance(error, UnknownOptionError):
        return text
    option = (error.token.keyword or error.token.value).partition("=")[0]
    if not option.startswith("--"):
        return f"{text.removesuffix('.')} (write a value that begins with - as --flag=VALUE, and a file as ./NAME)"
    others = _models_with(option) if command in ("fit", "tune") else []
    return f"{option} is an option of {', '.join(others)}, not of {model_named(arguments)}" if others else text


def _models_with(option: str) -> list[str]:
    """The models that have an option."""
    from seqrec.models import MODELS

    name = option.removeprefix("--").replace("-", "_")
    return [model for model, kind in MODELS.items() if name in (field.name for field in fields(kind.Config))]
