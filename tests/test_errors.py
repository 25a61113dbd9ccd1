"""Messages for people: one line, without control characters."""

import pytest

from seqrec.errors import InputError, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 猫 [/b] :smile:", "plain é 猫 [/b] :smile:"),
        ("\x1b[2J\x1b]52;c;aGk=\x1b\\", "\\x1b[2J\\x1b]52;c;aGk=\\x1b\\"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("line\u2028separator", "line\\u2028separator"),
        ("\ud800", "\\ud800"),
        ("\x7f\x00", "\\x7f\\x00"),
    ],
)
def test_control_characters_are_shown_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(InputError(text)) == shown
    assert printable("a\nb", keep="\n") == "a\nb"


def test_one_line_is_the_first() -> None:
    frames = "expected a tensor\nException raised from f at x.cpp:1 (most recent call first):\nframe #0: 0x7f"
    assert one_line(RuntimeError(frames)) == "expected a tensor"
    assert one_line(RuntimeError("Error(s) in loading:\n\tsize mismatch\nmore")) == "Error(s) in loading: size mismatch"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(RuntimeError("x" * 10_000))) < 400
