"""The web page in Chromium: what a person does with it, on a server with two runs."""

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from web_server import HTML, SECONDS, TOKEN, Served, tables

pytestmark = pytest.mark.web

expect.set_options(timeout=1000 * SECONDS)
Opener = Callable[..., Any]
HISTORY = "#next?h=102&h=103&h=104"


def ask(address: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(address + path, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.loads(answer.read())


def recommended(address: str, **body: Any) -> list[str]:
    answer = ask(address, "/v1/recommend", body)
    return [item["title"] or str(item["id"]) for item in answer["items"]]


def shown(page: Any, column: int = 0) -> list[str]:
    """The titles of a list on the page, once it is complete."""
    expect(page.locator(".columns:not([aria-busy])")).to_be_visible()
    return page.locator(".ranked").nth(column).locator(".title").all_inner_texts()


def becomes(page: Any, titles: list[str], column: int = 0) -> None:
    """Wait until the list is this one."""
    expect(page.locator(".ranked").nth(column).locator(".title")).to_have_text(titles)


def history_of(page: Any) -> list[str]:
    return page.locator(".history-title").all_inner_texts()


def find(page: Any, words: str) -> Any:
    """Type into the search; the first option."""
    page.get_by_role("combobox", name="Find an item").fill(words)
    return page.locator(".options li").first


def hash_of(page: Any) -> str:
    return page.evaluate("location.hash")


def test_empty_history_shows_popular_items_and_says_so(both: str, open_page: Opener) -> None:
    page = open_page(both)
    expect(page.locator(".note").first).to_contain_text("the most popular items")
    becomes(page, recommended(both, history=[], k=10))
    expect(page.locator(".starters .chip")).to_have_count(6)


def test_a_history_is_built_by_search_and_the_list_follows(both: str, open_page: Opener) -> None:
    page = open_page(both)
    titles = {str(row["item_id"]): row["title"] for row in tables()[1].iter_rows(named=True)}
    for number, item in enumerate(["105", "120"], 1):
        option = find(page, titles[item].lower())
        expect(option).to_contain_text(titles[item])
        option.click()
        expect(page.locator(".history-row")).to_have_count(number)
    assert history_of(page) == [titles["105"], titles["120"]]
    becomes(page, recommended(both, history=["105", "120"], k=10))
    assert hash_of(page) == "#next?h=105&h=120"
    page.locator(".title-button").first.click()  # a recommended item continues the history
    expect(page.locator(".history-row")).to_have_count(3)
    page.go_back()
    expect(page.locator(".history-row")).to_have_count(2)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".history-row")).to_have_count(0)
    assert hash_of(page) == "#next"


def test_filters(both: str, open_page: Opener) -> None:
    page = open_page(both, HISTORY)
    assert len(shown(page)) == 10
    page.get_by_label("Items to show").select_option("5")
    expect(page.locator(".ranked-row")).to_have_count(5)
    asked = {"history": [102, 103, 104], "k": 5, "category": ask(both, "/v1/categories")["categories"][1]["name"]}
    page.get_by_label("Category").select_option(asked["category"])
    becomes(page, recommended(both, **asked))
    again = page.get_by_label("Recommend items of the history again")
    keep = not again.is_checked()
    again.click()
    becomes(page, recommended(both, **asked, keep_seen=keep))
    assert f"seen={keep:d}" in hash_of(page)


def test_reasons(both: str, open_page: Opener) -> None:
    page = open_page(both, HISTORY)
    first = page.locator(".ranked-row").first
    why = first.get_by_role("button", name="Why")
    expect(why).to_have_attribute("aria-expanded", "false")
    why.click()
    expect(why).to_have_attribute("aria-expanded", "true")
    expect(first.locator(".reasons li").first).to_be_visible()
    answer = ask(both, "/v1/recommend", {"history": [102, 103, 104], "explain": True})
    reasons = answer["items"][0]["why"]
    expected = [one["title"] or str(one["id"]) for one in reasons if one["influence"] or one["transitions"]]
    assert first.locator(".reason-title").all_inner_texts() == expected
    value = f"{abs(reasons[0]['influence']):.2f}"
    expect(first.locator(".bar-influence .bar-value").first).to_contain_text(value)
    why.click()
    expect(first.locator(".reasons")).to_be_hidden()


def test_two_runs_side_by_side(both: str, open_page: Opener) -> None:
    page = open_page(both, HISTORY)
    page.get_by_label("Compare with").select_option("counted")
    expect(page.locator(".ranked")).to_have_count(2)
    expect(page.locator(".summary")).to_contain_text("in both lists")
    lists = [recommended(both, history=[102, 103, 104], k=10, run=run) for run in ("neural", "counted")]
    for column, titles in enumerate(lists):
        becomes(page, titles, column)
    common = len(set(lists[0]) & set(lists[1]))
    expect(page.locator(".summary")).to_contain_text(f"{common} of 10 items")
    for place, titles in enumerate(lists):
        marks = [row.locator(".mark").inner_text().strip() if row.locator(".mark").count() else "" for row in
                 page.locator(".ranked").nth(place).locator(".ranked-row").all()]  # fmt: skip
        for position, (title, mark) in enumerate(zip(titles, marks, strict=True)):
            if title not in lists[1 - place]:
                assert mark.startswith("only here")
            else:
                moved = lists[1 - place].index(title) - position
                assert mark.split(",")[0].strip() == ("" if not moved else f"{'▲' if moved > 0 else '▼'} {abs(moved)}")


def test_similar_items_from_any_item(both: str, open_page: Opener) -> None:
    page = open_page(both, HISTORY)
    page.locator(".ranked-row").first.get_by_role("button", name="Similar").click()
    dialog = page.get_by_role("dialog")
    first = shown(page)[0]
    expect(dialog.get_by_role("heading", name=first)).to_be_visible()
    item = re.search(r"item=([^&]+)", hash_of(page))[1]
    similar = ask(both, f"/v1/similar?item={item}")["items"]
    expect(dialog.locator(".similar li")).to_have_count(len(similar))
    names = [one["title"] or str(one["id"]) for one in similar]
    assert dialog.locator(".similar .link").all_inner_texts() == names
    dialog.locator(".similar .link").first.click()
    expect(dialog.get_by_role("heading", level=2)).to_have_text(names[0])
    page.go_back()
    expect(dialog.get_by_role("heading", name=first)).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert "item=" not in hash_of(page)


def test_a_known_user_is_replayed(both: str, open_page: Opener) -> None:
    page = open_page(both, "#people")
    user = ask(both, "/v1/users?k=3")["users"][1]["id"]
    page.get_by_role("combobox", name="Find a user").fill(user)
    expect(page.locator(".options li")).to_have_count(1)
    page.locator(".options li").click()
    expect(page.get_by_role("heading", name=user)).to_be_visible()
    page.get_by_label("Last steps").select_option("5")
    expect(page.locator(".step")).to_have_count(5)
    steps = ask(both, f"/v1/replay?user={user}&steps=5")["steps"]
    for step, row in zip(steps, page.locator(".step").all(), strict=True):
        title = step["next"]["title"] or str(step["next"]["id"])
        assert row.locator(".next-item").inner_text() == title
        rank = step["rank"]
        assert row.locator(".verdict").inner_text() == (f"Hit at place {rank}" if rank else "Not in the top 10")
        assert row.get_by_text("came next", exact=True).count() == (1 if rank else 0)
    page.get_by_role("link", name="Try this history").click()
    expect(page.locator(".history-row").first).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Show me one").click()
    expect(page.get_by_role("heading", name=user)).to_have_count(0)
    expect(page.locator(".step").first).to_be_visible()


def test_a_user_that_is_not_there(both: str, open_page: Opener) -> None:
    page = open_page(both, "#people?id=nobody")
    page.watched.expected = "404"
    expect(page.get_by_role("alert")).to_contain_text("'nobody' is not in the log")


def test_a_live_session_changes_the_list(both: str, open_page: Opener) -> None:
    page = open_page(both)
    shown(page)
    page.get_by_label("User of the live session").fill("guest 1")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", name="History of guest 1")).to_be_visible()
    before = shown(page)
    page.locator(".title-button").nth(2).click()
    expect(page.locator(".summary")).to_contain_text("Recorded and ranked again")
    expect(page.locator(".history-row .mark-new")).to_have_text("event")
    after = shown(page)
    assert after != before
    assert after == recommended(both, user="guest 1", k=10)
    new = [row.locator(".title").inner_text() for row in page.locator(".ranked-row:has(.mark-new)").all()]
    assert new == [title for title in after if title not in before]
    assert [item["id"] for item in ask(both, "/v1/history?user=guest%201")["items"]]
    page.get_by_role("link", name="End the session").click()
    expect(page.get_by_role("button", name="Start")).to_be_visible()


def test_model_card(both: str, open_page: Opener) -> None:
    page = open_page(both, "#model")
    card = ask(both, "/v1/runs")["runs"][0]
    expect(page.get_by_role("heading", level=1)).to_have_text("neural")
    scores = card["metrics"]["test"]["full"]
    own = page.locator("tr.own").first
    expect(own).to_contain_text(f"{scores['metrics']['ndcg@10']:.4f}")
    low, high = scores["intervals"]["ndcg@10"]
    expect(own).to_contain_text(f"{low:.3f}–{high:.3f}")
    for name in scores["baselines"]:
        expect(page.locator("tbody th").filter(has_text=re.compile(f"^{name}$")).first).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Training loss: from"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(r"Validation NDCG@10: best"))).to_be_visible()
    page.get_by_role("link", name="counted").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("counted")
    expect(page.get_by_text("This model is counted, not trained")).to_be_visible()


def test_training_curve_of_the_api(both: str) -> None:
    curve = ask(both, "/v1/runs/curve?run=neural")
    assert [one["epoch"] for one in curve["epochs"]] == [1, 2, 3]
    assert all(one["loss"] > 0 and 0 <= one["value"] <= 1 for one in curve["epochs"])
    assert all(one["loss"] is None for one in ask(both, "/v1/runs/curve?run=counted")["epochs"])


def test_keyboard_alone(both: str, open_page: Opener) -> None:
    page = open_page(both)
    shown(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "find"
    for count in (1, 2, 3):
        page.keyboard.type("e")
        expect(page.locator(".options li").first).to_have_attribute("aria-selected", "true")
        page.keyboard.press("ArrowDown")
        expect(page.locator(".options li").nth(1)).to_have_attribute("aria-selected", "true")
        active = page.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
        assert active == page.locator(".options li").nth(1).get_attribute("id")
        for _ in range(count):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator(".history-row")).to_have_count(count)
    first, second, third = history_of(page)
    page.locator(".history-title").nth(2).focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator(".history-title").nth(1)).to_have_text(third)
    assert history_of(page) == [first, third, second]
    expect(page.locator(".history-title").nth(1)).to_be_focused()
    page.keyboard.press("Delete")
    expect(page.locator(".history-row")).to_have_count(2)
    assert history_of(page) == [first, second]
    expect(page.locator(".history-title").nth(1)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".history-title").first).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # the button that moves the item later
    page.keyboard.press("Enter")
    expect(page.locator(".history-title").first).to_have_text(second)
    shown(page)  # the list after the move, or its first row could change between two keys
    page.locator(".ranked-row").first.get_by_role("button", name="Why").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".why").first).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Escape")


def test_the_focus_stays_in_the_list_when_its_item_leaves_it(both: str, open_page: Opener) -> None:
    page = open_page(both, HISTORY)
    first = shown(page)[0]
    for count in (4, 5):
        page.locator(".title-button").first.focus()
        page.keyboard.press("Enter")  # the item joins the history, and is no longer recommended
        expect(page.locator(".history-row")).to_have_count(count)
        assert first not in shown(page)
        expect(page.locator(".title-button").first).to_be_focused()
        first = shown(page)[0]


def test_the_theme_is_chosen_and_kept(both: str, open_page: Opener) -> None:
    page = open_page(both)
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    button = page.get_by_role("button", name="Dark theme")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    assert open_page(both, theme="dark").evaluate(ground) == dark


def test_titles_are_text(both: str, open_page: Opener) -> None:
    page = open_page(both, "#next?h=100&item=100")
    expect(page.get_by_role("dialog").get_by_role("heading", name=HTML)).to_be_visible()
    page.keyboard.press("Escape")
    assert history_of(page) == [HTML]
    option = find(page, "onerror")
    expect(option).to_contain_text(HTML)
    assert page.locator("img[src=x]").count() == 0


def test_items_without_a_title_and_unknown_items(both: str, open_page: Opener) -> None:
    page = open_page(both, "#next?h=101&h=nothing<b>")
    expect(page.locator(".history-row")).to_have_count(2)
    assert history_of(page) == ["101", "nothing<b>"]
    expect(page.locator(".history-row").nth(1)).to_contain_text("not in the catalogue")
    expect(page.locator(".used")).to_contain_text("nothing<b>")


def test_wrong_token_then_the_right_one(serving: Callable[..., str], open_page: Opener) -> None:
    address = serving("counted", token=TOKEN)
    page = open_page(address)
    page.watched.expected = "401"
    page.get_by_label("Token", exact=True).fill("wrong")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("refused")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".ranked-row")).to_have_count(10)
    page.reload()  # it is kept for the session
    expect(page.locator(".ranked-row")).to_have_count(10)
    assert TOKEN not in page.url
    assert len(page.watched.errors) >= 2


def test_a_refused_run_is_shown_with_its_reason(runs: Path, open_page: Opener, tmp_path: Path) -> None:
    shutil.copytree(runs / "counted", tmp_path / "counted")
    server = Served(tmp_path, "counted")
    try:
        (tmp_path / "counted" / "config.json").write_text("{")
        with pytest.raises(urllib.error.HTTPError, match="409"):
            ask(server.address, "/v1/reload", {})
        page = open_page(server.address, "#model")
        expect(page.locator(".notice")).to_contain_text("can't be used")
        expect(page.locator(".notice")).to_contain_text("config.json")
    finally:
        server.stop()


def test_a_server_that_stopped(runs: Path, open_page: Opener) -> None:
    server = Served(runs, "counted")
    try:
        page = open_page(server.address, "#next?h=102")
        page.watched.expected = "ERR_"
        shown(page)
    finally:
        server.stop()
    page.locator(".title-button").first.click()
    expect(page.get_by_role("alert").first).to_contain_text("can't be reached")


BODIES = """
async (how) => {
  const {call} = await import("/static/api.js");
  const controller = new AbortController();
  const usual = window.fetch;
  window.fetch = async (path, {signal}) => new Response(new ReadableStream({
    start(body) {
      body.enqueue(new TextEncoder().encode('{"items": ['));
      if (how === "cut off") body.close();
      else signal.addEventListener("abort", () => body.error(signal.reason));
    },
  }));
  try {
    const answer = call("/v1/items", {signal: controller.signal});
    if (how === "replaced") setTimeout(() => controller.abort(), 50);
    await answer;
    return "an answer";
  } catch (error) {
    return `${error.name}: ${error.message}`;
  } finally {
    window.fetch = usual;
  }
}
"""


def test_an_answer_without_its_end_is_no_answer(both: str, open_page: Opener) -> None:
    page = open_page(both)
    shown(page)
    assert page.evaluate(BODIES, "replaced").startswith("AbortError")
    assert page.evaluate(BODIES, "cut off") == "Error: the answer of the server is cut off; try again"


VIEWS = [
    HISTORY,
    "#next",
    "#next?h=102&h=103&with=counted",
    "#next?h=102&item=103",
    "#people?id=USER&steps=3",
    "#model",
]


def serious_findings(page: Any) -> list[tuple[str, str]]:
    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1400])
def test_axe_finds_nothing_serious(both: str, open_page: Opener, width: int, theme: str) -> None:
    user = ask(both, "/v1/users?k=3")["users"][1]["id"]
    serious = []
    page = open_page(both, width=width, theme=theme)
    for view in VIEWS:
        page.goto(f"{both}/{view.replace('USER', user)}")
        page.reload()
        page.locator(".ranked-row, .step, tr.own").first.wait_for(state="attached")
        expect(page.locator(".loading, [aria-busy]")).to_have_count(0)
        if view == HISTORY:
            page.locator(".ranked-row").first.get_by_role("button", name="Why").click()
            page.locator(".reasons li").first.wait_for()
            find(page, "e").wait_for()
        for details in page.locator("details > summary").all():
            details.click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} is wider than {width}"
        serious += [(view, *found) for found in serious_findings(page)]
    assert serious == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_on_the_report(runs: Path, open_page: Opener, tmp_path: Path, width: int, theme: str) -> None:
    pages = pytest.importorskip("seqrec.report.page")
    pages.write_report([runs / "neural", runs / "counted"], tmp_path / "report.html", None)
    page = open_page(tmp_path.as_uri(), "report.html", width=width, theme=theme)
    page.get_by_role("heading", level=1).wait_for()
    for details in page.locator("details > summary").all():
        details.click()
    assert serious_findings(page) == []
