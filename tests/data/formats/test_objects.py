"""Python literals in the lines of a file: read without running anything."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.formats.objects import MOST_LITERAL, parse_literal

plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values, max_size=5))
def test_what_python_writes_is_read(value):
    assert parse_literal(repr(value)) == value == ast.literal_eval(repr(value))


@pytest.mark.parametrize(
    "text",
    [
        "{'a': __import__('os').getcwd()}",
        "{'a': open}",
        "{'a': 1 + 1}",
        "{'a': 1 -1}",
        "{'a': 1" + "-1" * 50_000 + "}",
        "{'a': " + "-" * 50_000 + "1}",
        "{'a': " + "[" * 5_000 + "]" * 5_000 + "}",
        "{'a': b'x'}",
        "{'a': f'{1}'}",
        "{{1: 2}: 3}",
        "{'a': 'never closed}",
        "{'a': '\\x'}",
        "{'a': '" + "x" * MOST_LITERAL + "'}",
        "{'a': 1}; {'b': 2}",
        "",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_literal(text: str):
    with pytest.raises(ValueError, match=r"not a literal|too long"):
        parse_literal(text)
