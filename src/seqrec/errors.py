"""The one exception for input that a person can correct."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with status 2. Anything else that is raised is a
    fault of this package and shows its traceback.
    """


def one_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


class RunWarning(UserWarning):
    """What became of a run folder, where nobody asked: left-overs of a killed process, or another one at work."""
