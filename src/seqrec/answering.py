"""What a trained model answers: recommendations and similar items."""

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import reduce
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.dataset import Dataset
from seqrec.data.formats.write import write_frames
from seqrec.data.people import given_people, known_items, known_people, listed_items
from seqrec.data.split import TrainedOn
from seqrec.device import check_polars, threads
from seqrec.errors import InputError, UnknownIdWarning, check_whole, warn
from seqrec.models.base import Model
from seqrec.models.features import reads_users
from seqrec.predictor import Predictor
from seqrec.ranking.scoring import USERS_AT_ONCE, evaluation_mode
from seqrec.ranking.tables import recommended_tables, similar_table
from seqrec.ranking.topk import check_k
from seqrec.run.config import RunConfig
from seqrec.run.outputs import check_outputs

BLOCK = 2 * USERS_AT_ONCE  # users per frame


class Answering:
    """A trained model with its dataset, and what it recommends; see :class:`seqrec.Recommender`."""

    model_name: str
    _config: RunConfig | None
    _dataset: Dataset | None
    _model: Model | None
    _split: Any
    _trained_on: TrainedOn

    def recommend(
        self,
        users: Iterable[Any] | pl.Series | None = None,
        histories: Any = None,
        k: int = 10,
        *,
        times: Any = None,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        strict: bool = False,
    ) -> pl.DataFrame:
        """Recommend ``k`` items to each user of the log, or to each of the given histories.

        Args:
            users: user ids, as a list, an array or a column of any library, or a single id. By default all users of
                the log, unless ``histories`` is given. 128, "128" and 128.0 are the same id.
            histories: item ids of each user in time order: a sequence of lists (``user_id`` is then the index in the
                sequence), a mapping from names to lists, or anything that :func:`read_log` accepts. The users need
                not be in the log; features of users count as unknown.
            times: time of each item of ``histories``, in the same shape: numbers since 1970, dates, or ISO strings.
                Each history is sorted by time (equal times keep their order), and tisasrec, hstu and slirec also
                read the times. Histories in a file or a frame have them in a column instead.
            k: number of items per user. Users get fewer if the filters leave fewer.
            keep_seen: also recommend items that the user has already seen: those of the history and, for users of the
                log, those that filters such as ``min_rating`` dropped. By default the run decides as it did for
                validation and test: False, unless most validation items were in the history.
            allow: item ids; only these are recommended.
            deny: item ids; these are never recommended.
            strict: raise an error for an unknown user or item. By default it is a warning, and users without any known
                item get the most popular items.

        Returns:
            A frame sorted by user and rank with ``user_id``, ``item_id``, ``title`` if titles are known, ``score`` and
            ``rank`` (from 1). Compare scores only within one user; their last bits may depend on others in the call.

        Raises:
            InputError: ``k`` is out of range, or ``strict`` is set and an id is unknown.
        """
        frames = self.recommend_batches(
            users, histories, k, times=times, keep_seen=keep_seen, allow=allow, deny=deny, strict=strict
        )
        return reduce(pl.DataFrame.vstack, frames)  # pl.concat hangs in a forked process

    def recommend_to(self, out: str | Path, users: Any = None, histories: Any = None, k: int = 10, **more: Any) -> None:
        """Write the result of :meth:`recommend` to a file, one batch of users at a time.

        Args:
            out: file name, ending in .parquet, .csv or .jsonl. The file appears only when it is complete.
            users: user ids, as for :meth:`recommend`.
            histories: histories, as for :meth:`recommend`.
            k: number of items per user.
            more: other keywords of :meth:`recommend_batches`.
        """
        check_outputs(out)
        check_polars("writing a table")
        with closing(self.recommend_batches(users, histories, k, **more)) as frames:
            write_frames(frames, out)

    def recommend_batches(
        self,
        users: Iterable[Any] | pl.Series | None = None,
        histories: Any = None,
        k: int = 10,
        *,
        times: Any = None,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        strict: bool = False,
        batch_size: int = BLOCK,
        progress: bool = False,
    ) -> Generator[pl.DataFrame, None, None]:
        """Yield the rows of :meth:`recommend` in frames of ``batch_size`` users, each computed on demand.

        There is at least one frame, which may be empty. Scores equal those of :meth:`recommend` to the last bit.
        ``progress`` shows a progress bar on a terminal.
        """
        model, dataset = self._ready()
        check_k(k, dataset.num_items)
        check_whole("batch_size", batch_size, least=1)
        allowed = None if allow is None else known_items(dataset, allow, "allow", strict)
        denied = None if deny is None else known_items(dataset, deny, "deny", strict)
        if users is not None and histories is not None:
            raise InputError("users and histories exclude each other; ask for one at a time")
        if times is not None and histories is None:
            raise InputError("times belong to the items of histories; give histories too")
        if histories is None:
            people, asked = known_people(dataset, users, strict)
        else:
            people, asked = given_people(dataset, histories, strict, times, model.USES_TIMES)
            if reads_users(model):
                warn("the model reads features of users, which are unknown for the owners of these histories",
                     UnknownIdWarning)  # fmt: skip
        blocks = self._predictor().rank(people, k, keep_seen=keep_seen, allow=allowed, deny=denied, size=batch_size)
        return recommended_tables(model, dataset, asked, blocks, batch_size, progress)

    def _predictor(self) -> Predictor:
        """A predictor that uses the model with its current weights."""
        model, dataset = self._ready()
        with evaluation_mode(model):
            return Predictor(model, dataset, self._keeps_seen(None), first_pass=False)

    def similar(self, items: Iterable[Any], k: int = 10, *, strict: bool = False) -> pl.DataFrame:
        """Find the ``k`` items most similar to each given item, by the cosine of their embeddings.

        Args:
            items: item ids.
            k: number of similar items per item.
            strict: raise an error for an unknown item. By default it is a warning.

        Returns:
            A frame with the columns ``item_id``, ``similar_item_id``, ``score`` (-1 to 1) and ``rank`` (from 1). If
            titles are known, ``title`` and ``similar_title`` follow their ids.

        Raises:
            InputError: ``k`` is out of range, ``strict`` is set and an item is unknown, or the model has no embeddings.
        """
        model, dataset = self._ready()
        indices = listed_items(dataset, items, strict)
        with threads(), evaluation_mode(model):
            found, cosines = self._predictor().neighbours(indices, k)
        return similar_table(dataset, indices, found, cosines)

    @property
    def dataset(self) -> Dataset:
        """The dataset that the model was trained on."""
        return self._ready()[1]

    @property
    def model(self) -> Model:
        """The trained model. After a refit, that of the refit."""
        return self._ready()[0]

    @property
    def label(self) -> str:
        """The model's name in tables."""
        return self._config.label if self._config else self.model_name

    @property
    def trained_on(self) -> TrainedOn:
        """What the model was trained on: ``train``, or after a refit ``train+valid`` or ``all``."""
        self._ready()
        return self._trained_on

    def _keeps_seen(self, asked: bool | None) -> bool:
        """``asked``, or by default the value that the run chose."""
        return bool(self._config and self._config.split.keep_seen) if asked is None else asked

    def _ready(self, as_trained: str = "") -> tuple[Model, Dataset]:
        if self._model is None or self._dataset is None:
            raise InputError("this recommender was not trained; call fit or load first")
        if as_trained and self._split is None:
            raise InputError(f"items were added that no training has seen; {as_trained} a recommender without them")
        return self._model, self._dataset
