"""Results never overwrite an input or a run."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from seqrec import InputError, Recommender
from seqrec.cli.app import main
from seqrec.files import replacing
from seqrec.run.outputs import check_outputs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    rows = [(f"u{u}", f"i{(u + step) % 9}", step) for u in range(12) for step in range(5)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_csv(folder / "log.csv")
    (folder / "parts").mkdir()
    frame.head(30).write_parquet(folder / "parts/a.parquet")
    frame.tail(30).write_parquet(folder / "parts/b.parquet")
    (folder / "ids.txt").write_text("i1\ni2\n")
    (folder / "people.txt").write_text("u1\n")
    Recommender("markov").fit(frame, folder / "run")
    Recommender(embedding_dim=4, num_blocks=1, epochs=1).fit(frame, folder / "trained")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here/link").symlink_to("run")
    (tmp_path / "here/symbolic.csv").symlink_to("log.csv")
    os.link("log.csv", "hard.csv")
    os.link("parts/a.parquet", "part.parquet")
    os.link("run/data/items.npy", "users")
    return tmp_path / "here"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COMMANDS = """
inspect log.csv --json log.csv
inspect log.csv --json ./run/../log.csv
inspect log.csv --json symbolic.csv
inspect symbolic.csv --json log.csv
inspect log.csv --json hard.csv
inspect parts --json parts/b.parquet
inspect parts --json parts/new.parquet
inspect parts --json part.parquet
inspect log.csv --json run/data/items.npy
inspect log.csv --json parts
fit log.csv --out new --json log.csv --model markov
fit log.csv --out new --json new/config.json --model markov
fit log.csv --out new --json new/Metrics.JSON --model markov
fit log.csv --out new --json new --model markov
fit log.csv --out new --json new/state/facts.json --model markov
fit log.csv --out new --json new/state --model markov
fit log.csv --out new --json trained/weights.safetensors --model markov
fit run/epochs.csv --out run --overwrite --model markov
evaluate run --json run/weights.safetensors
evaluate run --json link/config.json
evaluate link --json run/metrics.json
evaluate run --json users
evaluate run --json trained/state/training.safetensors
recommend run --out run/data/user_ids.parquet
fit log.csv --out new --json new/data --model markov
recommend run --out link/items.parquet
recommend run --json run/data/dataset.json
recommend run --out USERS.parquet --users u1 --json USERS.parquet
recommend run --out ids.txt --allow ids.txt
recommend run --out ids.txt --deny ids.txt
recommend run --json people.txt --users-file people.txt
recommend run --out trained/epochs.csv
similar trained i1 --out trained/epochs.csv
similar trained i1 --json trained/config.json
compare log.csv --models markov,popularity --json log.csv
demo --out new --json new/config.json
bench log.csv --json log.csv
"""


@pytest.mark.parametrize("command", COMMANDS.strip().splitlines())
def test_what_would_destroy_something_is_refused(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    before = content(place)
    assert main(command.split()) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: ")
    assert content(place) == before
    assert not (place / "new").exists()


def test_comparisons_are_not_written_over_their_log(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "compare.csv").write_bytes((place / "log.csv").read_bytes())
    before = content(place)
    assert main(["compare", "compare.csv", "--models", "markov,popularity", "--out", "."]) == 2
    assert "compare.csv" in capsys.readouterr().err
    assert content(place) == before


def test_other_names_are_nobodys(place: Path) -> None:
    assert main(["evaluate", "run", "--json", "run/sampled.json"]) == 0
    assert main(["recommend", "run", "-k", "2", "--out", "parts/users.csv"]) == 0
    (place / "other").mkdir()
    (place / "other/config.json").write_text("{}")  # belongs to another program
    assert main(["inspect", "log.csv", "--json", "other/config.json"]) == 0
    check_outputs("-", None, "/dev/null", reads=["log.csv"], run="run")


def test_python_refuses_too(place: Path) -> None:
    before = content(place)
    with pytest.raises(InputError, match="is a file of a run"):
        Recommender.load("run").recommend_to("run/data/users.parquet")
    assert content(place) == before


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("old")
    path.chmod(mode)
    (tmp_path / "link.csv").symlink_to(path)
    for name in ("secret.csv", "link.csv"):
        with replacing(tmp_path / name) as new:
            assert new.stat().st_mode & 0o777 == mode | 0o600
            new.write_text("new")
        assert path.read_text() == "new"
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "new") as new:
            new.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask


def modes(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in paths}


@pytest.mark.parametrize("former", [False, True])
def test_a_run_that_is_replaced_keeps_its_permissions(place: Path, former: bool) -> None:
    private = "run/users.parquet" if former else "run/data/items.npy"
    if former:  # format 1 had users and items in other files
        shutil.rmtree(place / "run/data")
        (place / "run/users.parquet").touch()
        (place / "run/items.parquet").touch()
    else:
        (place / "run/data/user_ids.npy").unlink()  # so that the new run has a file that the old one lacked
        (place / "run/data").chmod(0o750)
    (place / "run").chmod(0o700)
    (place / private).chmod(0o600)
    (place / "run/weights.safetensors").chmod(0o640)
    options = ["--embedding-dim", "4", "--num-blocks", "1", "--epochs", "1"]
    assert main(["fit", "log.csv", "--out", "run", "--overwrite", *options]) == 0
    found = modes(place / "run")
    assert (found["."], found["weights.safetensors"]) == (0o700, 0o640)
    assert found["data/items.npy"] == found["data/user_ids.npy"] == 0o600
    if not former:
        assert found["data"] == 0o750
