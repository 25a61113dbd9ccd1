"""The user table: one row per user of the log, with the id and what is known of the person."""

from typing import Any

import polars as pl

from seqrec.data.formats.users import read_users_with_summary
from seqrec.data.table import Table, aligned

USER_TABLE = "user_table.parquet"


class UserTable(Table):
    """Known facts about the users of a log, in the order of their ids: numbers, vectors, lists of texts and texts.

    See :class:`seqrec.data.table.Table`. Row ``u`` of the frame is the user with index ``u``; its id is in ``user_id``.
    """

    WHAT = "user"
    WHOLE = "log"
    OPTION = "user_features"
    MAY_LIST = True


def describe_users(users: Any, user_ids: pl.Series) -> UserTable:
    """Make the user table of a log from descriptions of users.

    Users without a description are unknown in every column, and descriptions of other users are ignored; a warning says
    so.

    Args:
        users: descriptions in any form that :func:`read_users_with_summary` takes.
        user_ids: ids of the users of the log, sorted.

    Raises:
        InputError: ``users`` cannot be read, or describes no user of the log.
    """
    frame, summary = read_users_with_summary(users)
    return aligned(UserTable, frame, user_ids, summary)
