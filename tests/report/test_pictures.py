"""Pictures of a run."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from matplotlib.image import imread

from seqrec import InputError
from seqrec.report.pictures import recommendations_picture, training_curve

ROWS = [
    {"user": "anna", "lately": "one\ntwo", "recommended next": "three\nfour\nfive"},
    {"user": "bob", "lately": "Ünïcode $x^{ $ & \\frac$ <b>", "recommended next": ""},
]


def picture(path: Path) -> Any:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 4000
    pixels = imread(path)
    assert pixels.std() > 0.01  # something is drawn
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return pixels


def curve(**columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.5]} | columns)


@pytest.mark.parametrize("best", [None, 0.4])
@pytest.mark.parametrize("columns", [{}, {"ndcg@10": [0.1, None, 0.3]}, {"ndcg@10": [None, None, None]}])
def test_training_curve(tmp_path: Path, columns: dict[str, list[Any]], best: float | None) -> None:
    training_curve(curve(**columns), tmp_path / "curve.png", best)
    height, width, _ = picture(tmp_path / "curve.png").shape
    assert (width, height) == (1080, 570)


def test_validation_and_the_best_reachable_are_drawn(tmp_path: Path) -> None:
    drawn = []
    for number, (values, best) in enumerate([(None, None), ([0.1, 0.2, 0.3], None), ([0.1, 0.2, 0.3], 0.4)]):
        path = tmp_path / str(number) / "curve.png"
        training_curve(curve(**{"ndcg@10": values} if values else {}), path, best)
        drawn.append(picture(path).tobytes())
    assert len(set(drawn)) == 3


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        training_curve(curve(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_one_epoch_is_enough(tmp_path: Path) -> None:
    training_curve(curve(**{"ndcg@10": [0.0, 0.0, 0.0]}).head(1), tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").ndim == 3


def test_a_counted_model_has_no_loss_to_draw(tmp_path: Path) -> None:
    counted = pl.DataFrame({"epoch": [1], "loss": [None]}, schema={"epoch": pl.Int64, "loss": pl.String})
    for frame in (counted, pl.DataFrame({"epoch": [1], "loss": [""]}), curve().clear()):
        with pytest.raises(InputError, match="there is no epoch to draw"):
            training_curve(frame, tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []


def test_recommendations_grow_with_what_they_hold(tmp_path: Path) -> None:
    sizes = []
    for number, rows in enumerate([ROWS[:1], ROWS, [*ROWS, dict.fromkeys(ROWS[0], "long " * 30)]]):
        path = tmp_path / str(number) / "table.png"
        recommendations_picture(rows, path, title="What comes next")
        sizes.append(picture(path).shape[:2])
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert sizes[1][1] < sizes[2][1]


def test_no_recommendations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no recommendation to draw"):
        recommendations_picture([], tmp_path / "table.png")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for draw in (lambda path: training_curve(curve(), path), lambda path: recommendations_picture(ROWS, path)):
        with pytest.raises(InputError, match="cannot be written"):
            draw(tmp_path / "file" / "picture.png")
    assert (tmp_path / "file").read_text() == "mine"
