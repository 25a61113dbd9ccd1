"""Sections of a report about the model itself: what it recommends, where items lie, what attention reads, examples."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from seqrec.report.charts import attention_figure, map_figure, popularity_figure
from seqrec.report.content import RunContent
from seqrec.report.html import Html, table, tag
from seqrec.report.measures import Measured
from seqrec.report.quality import Show
from seqrec.report.svg import Picture

EXAMPLES, LATELY, SHOWN = 6, 6, 8  # people, items of their history, and recommendations for each


def popularity_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """How much of the catalogue is recommended, and how popular it is."""
    measured = {run.label: run.measured for run in runs if run.measured is not None}
    if not measured:
        return []
    first = next(iter(measured.values()))
    same = all(np.array_equal(found.in_log, first.in_log) for found in measured.values())
    in_log = [first.in_log] if same else [found.in_log for found in measured.values()]
    tenth = "tenth" if len(first.in_log) == 10 else "part"
    said = "; ".join(
        f"{name}: {found.in_lists[0]:.0%} of the recommendations, {found.in_log[0]:.0%} of the interactions"
        for name, found in measured.items()
    )
    picture = Picture(
        "popularity", f"Interactions and recommendations by {tenth} of the catalogue.",
        f"Shares by {tenth} of the catalogue. The most popular {tenth} has, {said}.",
        partial(popularity_figure, in_log, {name: found.in_lists for name, found in measured.items()}),
    )  # fmt: skip
    cells: list[list[str]] = []
    for name, found in measured.items():
        if not same or not cells:
            cells.append([f"interactions{'' if same else f' ({name})'}", *(f"{value:.1%}" for value in found.in_log)])
        cells.append([name, *(f"{value:.1%}" for value in found.in_lists)])
    columns = ["share of", *(str(place + 1) for place in range(len(first.in_log)))]
    numbers = tag("details", tag("summary", "As a table"), table(f"Shares by {tenth} of the catalogue", columns, cells))
    return [
        tag("p", "A model that only repeats what is popular shows few items to everybody. Below, the catalogue is ",
            f"sorted by interactions in training and cut into {len(first.in_log)} equal parts."),
        tag("div", tag("div", show(picture), numbers), _coverage(runs), class_="pair"),
    ]  # fmt: skip


def _coverage(runs: Sequence[RunContent]) -> Html:
    columns = ["", *(run.label for run in runs if run.measured is not None)]
    rows: dict[str, list[str]] = {
        "catalogue in the lists of all test users": [],
        "catalogue in the lists of the sample": [],
        "users in the sample": [],
        "most popular part: recommendations": [],
        "most popular part: interactions": [],
    }
    for run in runs:
        if (found := run.measured) is None:
            continue
        test = run.tests.get("full")
        known = test is not None and "coverage@10" in test.metrics
        values = [
            f"{test.metrics['coverage@10']:.1%}" if known and test is not None else "",
            f"{found.distinct / run.dataset.num_items:.1%}",
            f"{len(found.people):,}",
            f"{found.in_lists[0]:.1%}",
            f"{found.in_log[0]:.1%}",
        ]
        for row, value in zip(rows.values(), values, strict=True):
            row.append(value)
    shown = [[name, *values] for name, values in rows.items() if any(values)]
    return tag("div", table("The first ten recommendations.", columns, shown))


def map_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """The item embeddings in the plane."""
    pictures = []
    for number, run in enumerate(runs):
        found = run.measured.item_map if run.measured is not None else None
        if found is None:
            continue
        by = "category" if found.by_category else "interactions in training"
        title = f"{run.label}: {len(found.places):,} items by {by}."
        named = ", ".join(found.names)
        pictures.append(
            show(
                Picture(
                    f"map-{number + 1}",
                    title,
                    f"Map of item embeddings, coloured by {by}: {named}.",
                    partial(map_figure, found),
                )
            )
        )
    if not pictures:
        return []
    return [
        tag("p", "The most popular items, placed by t-SNE so that items with similar vectors are neighbours. ",
            "Distances between far groups mean little."),
        tag("div", *pictures, class_="grid" if len(pictures) > 1 else "one"),
    ]  # fmt: skip


def attention_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """The attention of the last token by distance."""
    found = {}
    for run in runs:
        attention = run.measured.attention if run.measured is not None else None
        if attention is not None and len(attention.weights):
            found[run.label] = attention
    if not found:
        return []
    said = "; ".join(f"{name}: {one.weights[0]:.0%} on the last item" for name, one in found.items())
    picture = Picture(
        "attention", "Mean attention of the last token, by steps back.",
        f"Mean attention by steps back from the last item. {said}.", partial(attention_figure, found),
    )  # fmt: skip
    longest = max(found.values(), key=lambda one: len(one.weights))
    steps = list(dict.fromkeys(step for step in (0, 1, 2, 3, 4, 9, 19, 29, 39, 49) if step < len(longest.weights)))
    alone = len(found) == 1
    cells = []
    for step in steps:
        more = [f"{longest.equal[step]:.3f}", f"{longest.counts[step]:,}"] if alone else []
        means = [f"{one.weights[step]:.3f}" if step < len(one.weights) else "" for one in found.values()]
        cells.append([str(step), *means, *more])
    columns = ["steps back", *found, *(["equal weights", "histories"] if alone else [])]
    return [
        tag("p", "How much each item of a history counts in the last attention block when the next one is predicted, ",
            "over the heads (and the models of an ensemble that have attention). Equal weights would give the ",
            "dotted line. Weights show what the block reads, not what caused a recommendation."),
        tag("div", show(picture), tag("div", table("Mean weight by steps back", columns, cells)), class_="pair"),
    ]  # fmt: skip


def examples_section(runs: Sequence[RunContent]) -> list[Html]:
    """A few users in words: their history, what was recommended, and what came next."""
    groups: list[list[RunContent]] = []
    for run in runs:
        if run.measured is None:
            continue
        mine = next((group for group in groups if _same_people(group[0], run)), None)
        groups.append([run]) if mine is None else mine.append(run)
    if not groups:
        return []
    parts = [
        tag(
            "p",
            "Users drawn at random from the sample, oldest item first. "
            "What really came next is marked where it was recommended.",
        )
    ]
    for group in groups:
        if len(groups) > 1:
            parts.append(tag("h3", ", ".join(run.label for run in group)))
        parts.append(tag("div", *(_example(group, row) for row in _chosen(group[0].measured)), class_="examples"))
    return parts


def _same_people(one: RunContent, other: RunContent) -> bool:
    a, b = one.measured, other.measured
    assert a is not None
    assert b is not None
    same = one.config.fingerprint == other.config.fingerprint and np.array_equal(a.people.ends, b.people.ends)
    return same and (a.next_items is None) == (b.next_items is None)


def _chosen(measured: Measured | None) -> list[int]:
    """Rows of the sample: at random, of histories with at least three items, if there are enough."""
    assert measured is not None
    lengths = measured.people.lengths
    rows = np.flatnonzero(lengths >= 3) if (lengths >= 3).sum() >= EXAMPLES else np.flatnonzero(lengths > 0)
    drawn = np.random.default_rng(1).permutation(rows)[:EXAMPLES]
    return [int(row) for row in drawn]


def _example(runs: Sequence[RunContent], row: int) -> Html:
    first = runs[0]
    measured = first.measured
    assert measured is not None
    people = measured.people
    start, end = int(people.starts[row]), int(people.ends[row])
    lately = np.asarray(first.dataset.items[max(start, end - LATELY) : end])
    user = first.dataset.users.values(np.array([int(people.users[row])]))[0]
    truth = None if measured.next_items is None else int(measured.next_items[row])
    earlier = end - start - len(lately)
    history = [tag("li", f"… {earlier:,} earlier", class_="quiet")] if earlier else []
    history += [tag("li", _named(name)) for name in first.names(lately)]
    parts = [tag("h3", f"User {user}"), tag("h4", "History"), tag("ol", *history, class_="plain")]
    for run in runs:
        assert run.measured is not None
        items = run.measured.lists[row]
        items = items[items > 0]
        shown = items[:SHOWN]
        parts.append(tag("h4", f"Recommended by {run.label}" if len(runs) > 1 else "Recommended"))
        parts.append(
            tag(
                "ol",
                *(_recommended(name, int(item) == truth) for name, item in zip(run.names(shown), shown, strict=True)),
            )
        )
    if truth is not None:
        parts += [
            tag("h4", "What came next"),
            tag("p", _named(first.names(np.array([truth]))[0]), _places(runs, row, truth)),
        ]
    return tag("article", *parts)


def _recommended(name: tuple[str, str | None], is_next: bool) -> Html:
    if is_next:
        return tag("li", tag("mark", _named(name)), tag("span", " came next", class_="tick"))
    return tag("li", _named(name))


def _places(runs: Sequence[RunContent], row: int, truth: int) -> Html:
    """At which place each run recommended the item that came next."""
    said = []
    for run in runs:
        assert run.measured is not None
        items = run.measured.lists[row]
        place = np.flatnonzero(items == truth)
        where = f"place {int(place[0]) + 1}" if len(place) else f"not in the first {len(items)}"
        said.append(f"{run.label}: {where}" if len(runs) > 1 else where)
    return tag("span", f" ({'; '.join(said)})", class_="quiet")


def _named(name: tuple[str, str | None]) -> Html:
    title, own = name
    return tag("span", title, title=own) if own is not None else tag("span", title)
