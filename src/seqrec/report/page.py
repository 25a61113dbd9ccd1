"""The report of one run or several: one HTML page that needs nothing else, and its pictures as PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import seqrec.report.svg as svg
from seqrec.data.split import TRAINED
from seqrec.errors import InputError
from seqrec.files import replacing
from seqrec.report.behaviour import attention_section, examples_section, map_section, popularity_section
from seqrec.report.content import RunContent, read_content
from seqrec.report.facts import log_section, repeat_section
from seqrec.report.html import Html, escaped, joined, tag
from seqrec.report.quality import Show, groups_section, tests_section, training_section
from seqrec.report.svg import Picture, rendered

MOST_RUNS = len(svg.SERIES)  # each has its own colour

Section = Callable[[Sequence[RunContent], Show], list[Html]]


def pictures_folder(out: Path) -> Path:
    """The folder of a report's pictures, beside the page."""
    return out.with_name(f"{out.stem}-pictures")


def write_report(folders: Sequence[str | Path], out: str | Path, title: str | None = None) -> list[Path]:
    """Write a report of one run, or of several side by side.

    The page is complete in itself and makes no request. Each picture is also written as a PNG, into the folder
    ``NAME-pictures`` beside ``NAME.html``.

    Args:
        folders: run folders.
        out: HTML file to write. An existing one is replaced.
        title: heading of the page. By default the names of the runs.

    Returns:
        The files that were written, the page first.

    Raises:
        InputError: there is no run, or too many; a run is damaged; or a file cannot be written.
    """
    if not folders:
        raise InputError("no run given; name one run folder or more")
    if len(folders) > MOST_RUNS:
        raise InputError(f"{len(folders)} runs are too many for one page; give at most {MOST_RUNS}")
    out = Path(out)
    runs = [read_content(folder, label) for folder, label in zip(folders, labels_of(folders), strict=True)]
    pictures, files = pictures_folder(out), [out]

    def show(picture: Picture) -> Html:
        files.append(pictures / f"{picture.name}.png")
        return tag("figure", Html(rendered(picture, pictures)), tag("figcaption", picture.title))

    text = page_of(runs, show, title)
    with replacing(out) as new:
        new.write_text(text, encoding="utf-8")
    return files


def labels_of(folders: Sequence[str | Path]) -> list[str]:
    """A name for each run: that of its folder, or the path if several have the same."""
    names = [Path(folder).resolve().name or str(folder) for folder in folders]
    names = [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]
    return [f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name
            for place, name in enumerate(names)]  # fmt: skip


def page_of(runs: Sequence[RunContent], show: Show, title: str | None = None) -> str:
    """The page as text. ``show`` draws a picture."""
    sections: dict[str, Section] = {
        "Test": tests_section,
        "Groups of users": groups_section,
        "Training": training_section,
        "Popularity": popularity_section,
        "Item map": map_section,
        "Attention": attention_section,
        "Examples": lambda runs, _: examples_section(runs),
        "The log": log_section,
        "Repeat it": lambda runs, _: repeat_section(runs),
    }
    made = {name: make(runs, show) for name, make in sections.items()}
    shown = {name: content for name, content in made.items() if content}
    links = [tag("li", tag("a", name, href=f"#{_anchor(name)}")) for name in shown]
    parts = [
        tag("section", tag("h2", name, id=f"{_anchor(name)}-title"), *content, id=_anchor(name),
            aria_labelledby=f"{_anchor(name)}-title")
        for name, content in shown.items()
    ]  # fmt: skip
    title = title or f"{' · '.join(run.label for run in runs)}"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {svg.variables(dark=True)} }} }}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing is requested and nothing runs, whatever a title in the log holds.
        tag("meta", http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"),
        tag("title", f"{title} – seqrec report"),
        tag("style", Html(f":root {{ {svg.variables(dark=False)} }}\n{dark}\n{style}")),
    )  # fmt: skip
    body = tag("body", _header(runs, title), tag("nav", tag("ul", *links), aria_label="Sections"),
               tag("main", *parts), tag("footer", _footer(runs)))  # fmt: skip
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _header(runs: Sequence[RunContent], title: str) -> Html:
    first = runs[0]
    if len(runs) == 1:
        lead = f"{first.model}, {_trained(first)}, on {first.dataset.num_interactions:,} interactions of "
        lead += f"{first.dataset.num_users:,} users with {first.dataset.num_items:,} items."
    else:
        lead = f"{len(runs)} runs side by side: {'; '.join(f'{run.label} is {run.model}' for run in runs)}."
    return tag("header", tag("p", "seqrec report", class_="kicker"), tag("h1", title), tag("p", lead, class_="lead"),
               _cards(runs))  # fmt: skip


def _trained(run: RunContent) -> str:
    return "not trained to the end" if run.trained_on is None else f"trained {TRAINED[run.trained_on]}"


def _cards(runs: Sequence[RunContent]) -> Html:
    """The main figures of the test in the full ranking: of one run, or the first of each of several."""
    tested = [run for run in runs if "full" in run.tests]
    if not tested:
        return Html("")
    if len(runs) > 1:
        cards = [(run.label, _figure(run, "ndcg@10"), f"NDCG@10, 95 %: {_spread(run, 'ndcg@10')}") for run in tested]
        return _card_list(cards)
    (run,) = tested
    test = run.tests["full"]
    cards = [
        (label, _figure(run, name), f"95 %: {_spread(run, name)}")
        for name, label in (("ndcg@10", "NDCG@10"), ("hr@10", "HR@10"), ("coverage@10", "Catalogue recommended"))
        if name in test.metrics
    ]
    others = {name: one.metrics["ndcg@10"] for name, one in test.baselines.items() if name != run.config.label}
    if others and (best := max(others.values())) > 0:
        name = max(others, key=others.__getitem__)
        gain = f"{test.metrics['ndcg@10'] / best - 1:+.1%}".replace("-", "−")
        cards.append((f"NDCG@10 against {name}", gain, "the best baseline"))
    return _card_list(cards)


def _card_list(cards: Sequence[tuple[str, str, str]]) -> Html:
    shown = [tag("div", tag("dt", label), tag("dd", value), tag("dd", note)) for label, value, note in cards]
    return tag("dl", *shown, class_="cards")


def _figure(run: RunContent, name: str) -> str:
    value = run.tests["full"].metrics[name]
    return f"{value:.1%}" if name.startswith("coverage") else f"{value:.4f}"


def _spread(run: RunContent, name: str) -> str:
    low, high = run.tests["full"].intervals[name]
    return f"{low:.1%} to {high:.1%}" if name.startswith("coverage") else f"{low:.4f} to {high:.4f}"


def _footer(runs: Sequence[RunContent]) -> Html:
    folders = joined((tag("code", str(run.folder)) for run in runs), ", ")
    return joined([escaped("Made by seqrec from "), folders, ". This page makes no request and can be sent as a file."])
