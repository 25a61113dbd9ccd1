"""The report: its numbers are those of the runs, it asks for nothing, titles are text, and bad input gets one line."""

import html
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from seqrec import InputError, Recommender
from seqrec.cli.app import main
from seqrec.report.charts import lengths_figure
from seqrec.report.content import RunContent
from seqrec.report.html import escaped, table, tag
from seqrec.report.layout import neighbour_map
from seqrec.report.measures import shares_by_popularity
from seqrec.report.page import labels_of, write_report
from seqrec.report.svg import Picture, rendered
from seqrec.run.config import RunConfig
from seqrec.run.folder import Run

pytestmark = pytest.mark.usefixtures("few_constants")

HOSTILE = [
    "<script>alert(1)</script>", '"onerror="alert(2)', "'><img src=x onerror=alert(3)>", "$x^{ $ \\frac",
    "]]><b>bold</b>", "&amp;&lt;", "</title></svg><script>alert(4)</script>", "Ünïcode ☃ 漢字 \u202e", "",
    "a\x00b\x1b[31m", "javascript:alert(5)",
]  # fmt: skip
OPTIONS: dict[str, Any] = {
    "embedding_dim": 8, "num_blocks": 1, "max_length": 8, "epochs": 3, "batch_size": 32, "evaluate_every": 1,
    "threads": 1,
}  # fmt: skip


def log(seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    rows = []
    for user in range(90):
        start = int(random.integers(22))
        rows += [(f"<u{user}>", f"i{(start + step + int(random.integers(2))) % 22:02}", 1000 + step)
                 for step in range(int(random.integers(4, 9)))]  # fmt: skip
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def items() -> pl.DataFrame:
    ids = [f"i{number:02}" for number in range(22)]
    titles = [f"{HOSTILE[number % len(HOSTILE)]}{number}" if number % 3 else None for number in range(22)]
    categories = [[f"{HOSTILE[number % 3]}"] for number in range(22)]
    return pl.DataFrame({"item_id": ids, "title": titles, "categories": categories})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``one``, ``two`` (of the same log, with titles and a refit), ``counted``, and ``<i>mixed``."""
    folder = tmp_path_factory.mktemp("runs")
    Recommender("sasrec", **OPTIONS).fit(log(), folder / "one")
    Recommender("sasrec", refit="all", **OPTIONS | {"seed": 1, "num_heads": 2}).fit(
        log(), folder / "two", items=items()
    )
    Recommender("markov").fit(log(), folder / "counted")
    Recommender("sasrec", ensemble=2, ensemble_kinds="mixed", **OPTIONS).fit(log(3), folder / "<i>mixed")
    return folder


def page_of(*runs: Path) -> str:
    """The page of some runs, without PNG files, which take most of the time."""
    out = runs[0].with_suffix(".html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec.report.page.rendered", lambda picture, folder: rendered(picture, None))
        write_report(runs, out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(runs: Path) -> dict[str, str]:
    """Pages of each run alone and of several."""
    kinds = {"one": ["one"], "two": ["two"], "counted": ["counted"], "mixed": ["<i>mixed"], "both": ["one", "two"],
             "all": ["one", "two", "counted", "<i>mixed"]}  # fmt: skip
    return {kind: page_of(*(runs / name for name in names)) for kind, names in kinds.items()}


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects elements, ids and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ["one", "two", "counted", "mixed", "both", "all"])
def test_the_page_asks_for_nothing_and_runs_nothing(pages: dict[str, str], name: str) -> None:
    page = Reader(pages[name])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for element, attributes in page.tags:
        assert element not in ("script", "link", "iframe", "object", "embed", "img", "base", "form", "b", "i")
        for key, value in attributes.items():
            assert not key.startswith("on"), (element, key)
            if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value is not None
                assert value.startswith("#"), (element, key, value)
                assert value[1:] in ids
    style = re.findall(r"<style>(.*?)</style>", pages[name], re.DOTALL)
    assert style
    assert not any("@import" in text or "http" in text for text in style)
    assert not re.findall(r"url\((?!#)", pages[name])
    assert "http://" not in pages[name]
    assert "https://" not in pages[name]


@pytest.mark.parametrize("name", ["one", "two", "all"])
def test_the_page_can_be_read_by_everybody(pages: dict[str, str], name: str) -> None:
    page = Reader(pages[name])
    elements = [element for element, _ in page.tags]
    assert elements.count("h1") == elements.count("main") == 1
    levels = [int(element[1]) for element in elements if re.fullmatch("h[1-6]", element)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert elements.count("table") == elements.count("caption")
    regions = [attributes for element, attributes in page.tags if attributes.get("class") == "scroll"]
    assert len(regions) == elements.count("table")
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in regions)
    pictures = re.findall(r"<svg .*?</svg>", pages[name], re.DOTALL)
    assert len(pictures) == elements.count("figure") >= 7
    for picture in pictures:
        tree = ElementTree.fromstring(picture)
        assert tree.get("role") == "img"
        assert len(tree[0].text or "") > 20
        assert len(list(tree.iter())) > 20
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", picture)) <= {"#ffffff", "#000000"}  # colours follow the page


def numbers(metrics: dict[str, Any]) -> set[str]:
    return {f"{value:.4f}" for name, value in metrics.items() if not name.startswith("recall@")}


@pytest.mark.parametrize("names", [["one"], ["two"], ["counted"], ["one", "two"]])
def test_the_numbers_are_those_of_the_files(runs: Path, pages: dict[str, str], names: list[str]) -> None:
    page = pages["both" if len(names) > 1 else names[0]]
    cells = set(re.findall(r"<td>([^<]*)</td>", page))
    for name in names:
        metrics = json.loads((runs / name / "metrics.json").read_text())
        assert set(metrics["test"]) == {"full", "sampled"}
        for test in metrics["test"].values():
            for scores in (test, *test["baselines"].values()):
                assert numbers(scores["metrics"]) <= cells
                for low, high in scores["intervals"].values():
                    assert f"{low:.4f} to {high:.4f}" in cells
            for other in test["baselines"]:
                assert f">{other}" in page
        for by, groups in metrics["test"]["full"]["groups"].items():
            for group in groups:
                assert f"{group['metrics']['ndcg@10']:.4f}" in cells, (by, group)
                assert f"{group['users']:,}" in cells
    epochs = pl.read_csv(runs / names[0] / "epochs.csv")
    if names[0] != "counted":
        assert f"{epochs['loss'][-1]:.3f} after {epochs.height} epochs" in page
        assert f"at best {epochs['ndcg@10'].max():.4f}" in page


def test_the_log_is_told(pages: dict[str, str]) -> None:
    frame = log()
    for value in (frame["user_id"].n_unique(), frame["item_id"].n_unique(), frame.height):
        assert f"<td>{value:,}</td>" in pages["one"]
    assert "Split checked: no target is in its own history" in pages["one"]
    assert "the weights in use were trained without validation and test items" in pages["one"]
    assert "the weights in use were trained with all items" in pages["two"]


def test_titles_are_text(pages: dict[str, str]) -> None:
    page = Reader(pages["two"])
    assert "<script>alert(1)</script>" in page.text  # as text, of an item or of the map's legend
    for text in ("<script", "<img", "<b>"):
        assert text not in pages["two"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", pages["two"])
    assert "<u" in Reader(pages["two"]).text  # ids of users, too
    assert "<h1>&lt;i&gt;mixed</h1>" in pages["mixed"]


def test_examples_are_right(runs: Path, pages: dict[str, str]) -> None:
    """Of a run without titles: the last items of each user shown, without the test item, which is named."""
    recommender = Recommender.load(runs / "one")
    data = recommender.dataset
    articles = re.findall(r"<article>(.*?)</article>", pages["one"])
    assert len(articles) == 6
    for article in articles:
        user = html.unescape(re.search(r"<h3>User (.*?)</h3>", article)[1])  # type: ignore[index]
        index = data.user_ids.to_list().index(user)
        own = data.items[data.offsets[index] : data.offsets[index + 1]]
        history, recommended = re.findall(r"<ol.*?</ol>", article)
        shown = re.findall(r"<span>(.*?)</span>", history)
        assert shown == data.item_ids.gather(own[:-1][-6:] - 1).to_list()
        found = re.findall(r"<span>(.*?)</span>", recommended)
        assert len(found) == 8
        assert not {*found} & {*data.item_ids.gather(own[:-1] - 1).to_list()}  # seen items are left out
        truth = data.item_ids[int(own[-1]) - 1]
        assert f"What came next</h4><p><span>{truth}</span>" in article
        assert ("<mark>" in article) == (truth in found)
        place = re.search(r"\(place (\d+)\)", article)
        assert (place is not None and found[int(place[1]) - 1] == truth) if truth in found else True


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", ["one", "two", "<i>mixed", "counted"])
def test_the_command_repeats_the_run(runs: Path, pages: dict[str, str], name: str, tmp_path: Path) -> None:
    page = pages["all"]
    code = re.findall(r"<pre[^>]*aria-label=\"Command for ([^\"]*)\"><code>(.*?)</code>", page)
    commands = {html.unescape(label): shlex.split(html.unescape(text)) for label, text in code}
    command = commands[name]
    assert command[:3] == ["seqrec", "fit", "LOG"]
    assert command[4] == str(runs / name)
    assert "--learning-rate" not in command  # what seqrec chooses by itself is left out
    log(3 if "mixed" in name else 0).write_csv(tmp_path / "log.csv")
    command[2], command[4] = str(tmp_path / "log.csv"), str(tmp_path / "again")
    assert main(command[1:]) == 0
    before, again = Run(runs / name).config, Run(tmp_path / "again").config
    for part in ("model", "model_config", "prepare", "split", "training", "refit"):
        assert getattr(again, part) == getattr(before, part)


@pytest.mark.slow
def test_pictures_are_written_beside_the_page(runs: Path, pages: dict[str, str], tmp_path: Path) -> None:
    files = write_report([runs / "one"], tmp_path / "deep" / "page.html")
    assert files[0] == tmp_path / "deep/page.html"
    assert {file for file in (tmp_path / "deep").rglob("*") if file.is_file()} == set(files)
    names = {file.stem for file in files[1:]}
    assert names == {
        "test-full", "test-sampled", "groups-history", "groups-popularity", "training-loss", "validation-ndcg",
        "popularity", "map-1", "attention", "lengths-1",
    }  # fmt: skip
    for file in files[1:]:
        assert file.parent == tmp_path / "deep/page-pictures"
        assert imread(file).std() > 0.01
    assert page_of(runs / "one") == pages["one"]  # the same again


def test_a_picture_is_the_same_again(tmp_path: Path) -> None:
    def draw() -> Figure:
        figure = Figure(figsize=(3, 2))
        figure.subplots().plot([1, 3, 2], label="<b>")
        return figure

    texts = [rendered(Picture("line", "A line", "A line that rises and falls.", draw), tmp_path / n) for n in "ab"]
    assert texts[0] == texts[1]
    assert (tmp_path / "a/line.png").read_bytes() == (tmp_path / "b/line.png").read_bytes()


@pytest.mark.slow
def test_what_does_not_exist_is_left_out(runs: Path, pages: dict[str, str], tmp_path: Path) -> None:
    assert "counted in one pass and has no epochs" in pages["counted"]
    assert not re.search('training-loss|id="attention"|id="item-map"', pages["counted"])
    shutil.copytree(runs / "one", tmp_path / "half")
    (tmp_path / "half/metrics.json").unlink()
    half = page_of(tmp_path / "half")
    assert "training has not ended, so there is no test yet" in half
    assert "training-loss" in half
    (tmp_path / "half/weights.safetensors").unlink()
    half = page_of(tmp_path / "half", runs / "one")
    assert "there are no weights yet" in half
    assert numbers(json.loads((runs / "one/metrics.json").read_text())["test"]["full"]["metrics"]) <= {
        *re.findall(r"<td>([^<]*)</td>", half)
    }


def test_several_runs_stand_side_by_side(pages: dict[str, str]) -> None:
    assert "cannot be compared" not in pages["both"]
    assert "cannot be compared" in pages["all"]  # one of them is of another log
    assert pages["both"].count("<td>recommendations") == 0
    head = re.search(r"<caption><span>The first ten recommendations.*?<tr>(.*?)</tr>", pages["both"])
    assert head is not None
    assert re.findall(r"<th scope=\"col\">(.*?)</th>", head[1]) == ["", "one", "two"]
    assert re.findall("Recommended by (one|two)", pages["both"]) == ["one", "two"] * 6


BAD = {
    "report --out x.html": "no run given",
    "report one --out x.png": "give one that ends in .html",
    "report nowhere --out x.html": "no such run folder",
    "report one one one one one one one one one --out x.html": "give at most 8",
    "report one --out one/config.json": "give one that ends in .html",
    "report broken-metrics --out x.html": "metrics.json: is damaged",
    "report broken-json --out x.html": "metrics.json",
    "report broken-epochs --out x.html": "epochs.csv: is damaged",
    "report one broken-weights --out x.html": "weights.safetensors",
    "report one --out x.html --json x.html": "is given for two results",
    "report one --out file/x.html": "cannot be written",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "one", "one")
    for name, file, content in (
        ("metrics", "metrics.json", '{"test": {"full": {"metrics": {"ndcg@10": "<b>"}}}}'),
        ("json", "metrics.json", "{"),
        ("epochs", "epochs.csv", "a,b\n1,2\n"),
        ("weights", "weights.safetensors", "x"),
    ):
        if f"broken-{name}" in line:
            shutil.copytree("one", f"broken-{name}")
            Path(f"broken-{name}", file).write_text(content)
    Path("file").write_text("")
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert BAD[line] in error
    assert not Path("x.html").exists()


@pytest.mark.slow
def test_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "a page.html"
    command = [
        "report",
        str(runs / "counted"),
        "--out",
        str(page),
        "--title",
        "<b>Two & more",
        "--json",
        str(tmp_path / "facts"),
    ]
    assert main(command) == 0
    out, errors = capsys.readouterr()
    assert out == f"report written to {page}; its 6 pictures are in {tmp_path / 'a page-pictures'}\n"
    assert errors == ""
    assert "<h1>&lt;b&gt;Two &amp; more</h1>" in page.read_text()
    facts = json.loads((tmp_path / "facts").read_text())
    assert facts["page"] == str(page)
    assert all(Path(file).is_file() for file in facts["pictures"])


@pytest.mark.parametrize("lengths", [[1], [3, 3, 4, 8], [5] * 40 + [70, 900, 23_039], list(range(1, 300)), []])
def test_every_length_is_in_the_bar_that_names_it(lengths: list[int]) -> None:
    figure = lengths_figure(np.array(lengths, dtype=np.int64))
    (axes,) = figure.axes
    names = [label.get_text().replace(",", "") for label in axes.get_xticklabels()]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}  # type: ignore[attr-defined]
    assert sum(heights.values()) == len(lengths)
    for place, name in zip(axes.get_xticks(), names, strict=True):
        low, _, high = name.partition("–")
        assert heights[round(place)] == sum(int(low) <= length <= int(high or low) for length in lengths)


@pytest.mark.parametrize(
    ("model", "training", "words"),
    [
        ("hstu", {"ensemble": 1}, "hstu"),
        ("hstu", {"ensemble": 3, "ensemble_kinds": "same"}, "3 × hstu"),
        ("hstu", {"ensemble": 3, "ensemble_kinds": "mixed"}, "3 models (hstu, lrurec, sasrec in turn)"),
        ("sasrec", {"ensemble": 2, "ensemble_kinds": "mixed"}, "2 models (sasrec, ssept in turn)"),
    ],
)
def test_the_model_in_words(model: str, training: dict[str, Any], words: str) -> None:
    nothing: Any = None
    config = RunConfig(model, {}, 1, 1, has_timestamps=False, fingerprint="", training=training)
    assert RunContent("run", Path(), config, {}, pl.DataFrame(), nothing, nothing).model == words


def test_labels() -> None:
    assert labels_of(["a/run", "b/other"]) == ["run", "other"]
    assert labels_of(["a/run", "b/run", "c"]) == ["a/run", "b/run", "c"]
    assert labels_of(["a", "a"]) == ["a (1)", "a (2)"]


def test_escaping() -> None:
    assert escaped('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert tag("p", "<", tag("b", ">"), class_='"', aria_label=None) == '<p class="&quot;">&lt;<b>&gt;</b></p>'
    shown = table("<caption>", ["a", "<b>"], [["<x>", 1]])
    assert '<th scope="row">&lt;x&gt;</th><td>1</td>' in shown
    assert 'aria-label="&lt;caption&gt;"' in shown


def test_shares_by_popularity_against_a_loop() -> None:
    random = np.random.default_rng(0)
    for size in (3, 10, 37):
        counts = np.r_[0, random.integers(0, 50, size)]
        lists = random.integers(0, size + 1, (20, 4))
        in_log, in_lists = shares_by_popularity(counts, lists)
        order = sorted(range(1, size + 1), key=lambda item: (-counts[item], item))
        parts = min(10, size)
        lengths = [size // parts + (part < size % parts) for part in range(parts)]
        for part, length in enumerate(lengths):
            group, order = order[:length], order[length:]
            assert in_log[part] == pytest.approx(sum(counts[item] for item in group) / counts.sum())
            assert in_lists[part] == pytest.approx(sum((lists == item).sum() for item in group) / (lists > 0).sum())
        assert in_lists.sum() == pytest.approx(1)


def test_neighbours_stay_neighbours_on_the_map() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 16, generator=random)
    group = torch.arange(160) % 8
    vectors = torch.nn.functional.normalize(centres[group] + 0.3 * torch.randn(160, 16, generator=random), dim=1)
    places = neighbour_map(vectors)
    assert places.shape == (160, 2)
    assert torch.isfinite(places).all()
    torch.testing.assert_close(places, neighbour_map(vectors))  # no random numbers
    main_two = torch.linalg.svd(vectors - vectors.mean(dim=0), full_matrices=False).U[:, :2]

    def kept(points: torch.Tensor) -> float:
        near = torch.cdist(points, points).fill_diagonal_(torch.inf).topk(10, largest=False).indices
        return float((group[near] == group[:, None]).float().mean())

    assert kept(places) > 0.95
    assert kept(places) > kept(main_two)
    for odd in (torch.ones(12, 4) / 2, torch.eye(10), torch.eye(10)[:, :1] + 0 * torch.eye(10)[:, :1]):
        assert torch.isfinite(neighbour_map(odd)).all()


def test_too_many_or_no_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run given"):
        write_report([], tmp_path / "x.html")
