"""The plan of a fit: the categories of the items, and the item table of a resumed run."""

from pathlib import Path

import polars as pl
import pytest

from seqrec import InputError, Recommender, RunWarning, TrainingWarning
from seqrec.data.items import ItemTable
from seqrec.models.slirec import SLiRecConfig
from seqrec.training.plan import settle_categories

SMALL = {"embedding_dim": 20, "max_length": 4, "epochs": 1, "evaluate_every": 0}


def log() -> pl.DataFrame:
    rows = [(u, (u + step) % 6, 1000 + step) for u in range(12) for step in range(5)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def items(*categories: list[str]) -> pl.DataFrame:
    titles = [f"title {item}" for item in range(6)]
    return pl.DataFrame({"item_id": range(6), "title": titles, "categories": list(categories)})


def table(*categories: list[str]) -> ItemTable:
    return ItemTable(items(*categories))


TWO = [["a"], ["b"], ["a"], ["b"], ["a"], ["b"]]


def test_the_number_of_categories_follows_from_the_items():
    sizes = settle_categories("slirec", SLiRecConfig(), table(*TWO))
    assert sizes.num_categories == 2
    assert table(*TWO).first_categories(2)[0].tolist() == [0, 1, 2, 1, 2, 1, 2]
    assert settle_categories("slirec", SLiRecConfig(num_categories=9), table(*TWO)).num_categories == 2
    for off in (settle_categories("slirec", SLiRecConfig(num_categories=0), table(*TWO)),
                settle_categories("slirec", SLiRecConfig(), None)):  # fmt: skip
        assert off == SLiRecConfig(num_categories=0)


def test_what_is_chosen_of_categories_is_said():
    some = table(["a", "b"], [], ["b"], ["a"], ["b"], ["b", "a"])
    with pytest.warns(
        TrainingWarning, match=r"items with several \(2\) count under the first, and items without one \(1\) share"
    ):
        sizes = settle_categories("slirec", SLiRecConfig(), some)
    assert some.first_categories(sizes.num_categories)[0].tolist() == [0, 2, 0, 1, 2, 1, 1]
    with pytest.warns(TrainingWarning, match="slirec learns no categories, because all items have the same"):
        assert settle_categories("slirec", SLiRecConfig(), table(*[["a"]] * 6)).num_categories == 0


@pytest.mark.parametrize("given", [None, table(*[["a"]] * 6), ItemTable(pl.DataFrame({"item_id": [1]}))])
def test_categories_that_are_not_there(given: ItemTable | None):
    with pytest.raises(InputError, match="num_categories is 3, but the items do not differ in their categories; give"):
        settle_categories("slirec", SLiRecConfig(num_categories=3), given)


def test_a_narrow_model_says_how_to_go_on():
    with pytest.raises(InputError, match="category_dim is 16; give less than embedding_dim 8, or num_categories 0"):
        Recommender("slirec", embedding_dim=8).fit(log(), items=items(*TWO))


def test_a_run_is_resumed_with_the_same_items(tmp_path: Path):
    Recommender("slirec", **SMALL).fit(log(), tmp_path / "run", items=items(*TWO))
    more = SMALL | {"epochs": 2}
    with pytest.raises(InputError, match="started with another item table; give the same items"):
        Recommender("slirec", **more).fit(log(), tmp_path / "run", items=items(*TWO[::-1]), resume=True)
    with pytest.raises(InputError, match="started with num_categories = 2, not 0"):
        Recommender("slirec", **more).fit(log(), tmp_path / "run", resume=True)
    again = Recommender("slirec", **more).fit(log(), tmp_path / "run", items=items(*TWO), resume=True)
    assert len(again.epochs) == 2


def test_titles_may_change_where_the_model_does_not_read_them(tmp_path: Path):
    plain = Recommender(**SMALL).fit(log())
    Recommender(**SMALL).fit(log(), tmp_path / "run", items=items(*TWO))
    with pytest.warns(RunWarning, match="keeps the item table that it was started with"):
        again = Recommender(**SMALL | {"epochs": 2}).fit(log(), tmp_path / "run", resume=True)
    assert again.recommend(k=2)["item_id"].dtype == pl.Int64
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.recommend(users=[1], k=2)["title"].to_list() == [
        f"title {item}" for item in loaded.recommend(users=[1], k=2)["item_id"]
    ]
    described = Recommender(**SMALL).fit(log(), items=items(*TWO))
    for (
        name,
        weights,
    ) in plain.model.state_dict().items():  # an item table that the model does not read changes no weights
        assert weights.equal(described.model.state_dict()[name]), name
    assert described.recommend(k=3).drop("title").equals(plain.recommend(k=3))
    assert "title" not in plain.recommend(k=3).columns
