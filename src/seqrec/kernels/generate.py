"""Generates, from a loop's declaration, the Python function that checks the arguments and calls the compiled loop.

``dataclasses`` generates ``__init__`` in the same way. Interpreting the declaration at each call took four times as
long, a tenth of a training step with few tokens.
"""

from seqrec.kernels.declarations import Array, Length, Number, Size


def source(arguments: list[Array | Number | Size], structure: bool) -> str:
    """The source of the function ``run(given)`` for a loop with these arguments."""
    arrays = [argument for argument in arguments if isinstance(argument, Array)]
    taken = sorted((array for array in arrays if not array.made), key=lambda array: array.optional)
    made = [array for array in arrays if array.made]
    numbers = [argument for argument in arguments if isinstance(argument, Number)]
    # Sizes that can be solved from a length of an array that is never None.
    direct = {
        length.names[0] for array in taken if not array.optional for length in array.lengths if len(length.names) == 1
    }
    used = {name for array in arrays for length in array.lengths for name in length.names}
    used |= {word for array in arrays for content in array.content for word in content.split() if word.isupper()}
    bound = {number.name for number in numbers}
    lines = [f"{number.name} = given['{number.name}']" for number in numbers]
    # Other sizes may come from the caller, or from an array that may be None.
    lines += [f"{name} = given.get('{name}')" for name in sorted(used - direct - bound)]
    for array in taken:
        lines += _if_given(array, _shape_lines(array, direct, bound))
    for array in taken:
        lines += _if_given(array, _content_lines(array))
    lines += [line for number in numbers for line in _number_lines(number)]
    for array in made:
        shape = ", ".join(map(str, array.lengths))
        lines += [f"{array.name} = empty(({shape},), dtype={array.kind}, device=cpu)"]
    passed = [text for argument in arguments for text in _passed(argument)]
    passed = [f"byref(structure({', '.join(passed)}))"] if structure else passed
    lines += [f"result = function({', '.join([*passed, 'threads()'])})"]
    lines += [f"return {', '.join(['result', *(array.name for array in made)])}"]
    return "\n    ".join(["def run(given):", *lines])


def _if_given(array: Array, lines: list[str]) -> list[str]:
    if not array.optional or not lines:
        return lines
    return [f"{array.name} = given.get('{array.name}')", f"if {array.name} is not None:", *(f"    {x}" for x in lines)]


def _shape_lines(array: Array, direct: set[str], bound: set[str]) -> list[str]:
    """Lines that check an array's type and shape, and bind the sizes that appear in it first."""
    name, refuse = array.name, f"refuse('{array.name}', given, locals())"
    gaps = "" if "strided" in array.content else f" or not {name}.is_contiguous()"
    other = f"{name}.dtype is not {array.kind} or {name}.layout is not strided or not {name}.is_cpu{gaps}"
    lines = [f"if {other}: {refuse}"]
    if not array.optional:
        lines = [f"{name} = given.get('{name}')", f"if {name} is None or {other}: {refuse}"]
    lengths = [f"n{place}" for place in range(len(array.lengths))]
    if array.flat:
        lines += [f"n0 = {name}.numel()"]
    else:
        lines += [
            f"shape = {name}.shape",
            f"if len(shape) != {len(lengths)}: {refuse}",
            f"{', '.join(lengths)}, = shape",
        ]
    wrong: list[str] = []
    for found, length in zip(lengths, array.lengths, strict=True):
        unknown = [size for size in length.names if size not in bound]
        if unknown:
            *others, size = sorted(unknown, key=direct.__contains__)
            lines += [f"if {missing} is None: {refuse}" for missing in others]
            value = (
                found if length == Length((size,)) else f"solved({found}, {length.product(but=size)}, {length.plus})"
            )
            if size in direct and not array.optional:
                bound.add(size)
                lines += [f"{size} = {value}"]
            else:
                lines += [f"if {size} is None: {size} = {value}"]
            wrong += [f"{size} < 0"] if value != found else []
        wrong += (
            []
            if unknown == [str(length)] and size in bound
            else [f"{found} {'<' if length.at_least else '!='} {length}"]
        )
    return [*lines, *([f"if {' or '.join(wrong)}: {refuse}"] if wrong else [])]


def _content_lines(array: Array) -> list[str]:
    """Lines that check an array's values."""
    lines = []
    for word, *more in (content.split() for content in array.content):
        given = [f"{array.name}.data_ptr()", f"{array.name}.numel()"]
        if word == "rising":
            given += [more[1], str(int("by" in more)), more[-1] if "up" in more else more[1]]
        elif word == "below":
            word = "below_int32" if array.kind == "int32" else word
            given += [" ".join(more)]
        elif word == "sorted" and more:
            word = "sorted_within"
            given += [f"{more[-1]}.data_ptr()"]
        elif word != "sorted":
            continue
        lines += [f"if not {word}({', '.join(given)}): refuse('{array.name}', given, locals())"]
    return lines


def _number_lines(number: Number) -> list[str]:
    name, size = number.name, number.size
    if number.rule is None:
        return []
    wrong = f"{name} < 1 or {size} % {name}" if number.rule == "dividing" else f"not 0 <= {name} < {size}"
    return [f"if {wrong}: refuse_number('{name}', {name}, '{number.rule} {size} =', {size})"]


def _passed(argument: Array | Number | Size) -> list[str]:
    """The expressions that are passed to the C function for an argument."""
    if isinstance(argument, Size):
        return [argument.value]
    if isinstance(argument, Number):
        return [f"addressof({argument.name})" if argument.kind == "addresses" else argument.name]
    name, width = argument.name, argument.lengths[-1]
    address = f"None if {name} is None else {name}.data_ptr()" if argument.optional else f"{name}.data_ptr()"
    if "strided" in argument.content:
        return [address, f"{name}.stride(0)", f"{name}.stride(1)"]
    if "halves" in argument.content:
        return [address, f"{name}.data_ptr() + ({width}) // 2 * {name}.element_size()"]
    return [address]


def solved(length: int, product: int, plus: int) -> int:
    """The size for which ``product * size + plus`` is the length; -1 if there is none."""
    size, rest = divmod(length - plus, product) if product else (-1, 0)
    return size if rest == 0 else -1
