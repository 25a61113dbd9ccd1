"""The requests and answers of the HTTP API, as pydantic models: they are checked here and shown in OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

LONGEST_ID = 200  # characters
MOST_ITEMS = 1000  # in a history, and to recommend
MOST_FILTERED = 10_000  # ids in an allow or deny list
MOST_REQUESTS = 256  # in a batch
MOST_TOGETHER = 20_000  # items to recommend in a batch
MOST_EXPLAINED = 50  # items to recommend with reasons
MOST_EVENTS = 1000  # in one request

_Text = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_ID)]
_Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Id = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | _Text
_Date = Annotated[StrictStr, Field(max_length=40, pattern=r"[^0-9.]")]  # numbers are sent as such
Time = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | _Float | _Date
K = Annotated[StrictInt, Field(ge=1, le=MOST_ITEMS, description="Number of items to recommend.")]
Score = Annotated[float, Field(description="Can be compared within one answer only.")]


class _Given(BaseModel):
    """A request. A field that it does not have is an error, because it would be ignored."""

    model_config = ConfigDict(extra="forbid")


class Recommend(_Given):
    """Recommend items to a known user, after a history, or after both: the user's own history and then the one sent."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"history": ["B00005N7P0", "B000035Y4P"], "k": 3}, {"user": "A1", "k": 5}]},
    )
    user: Id | None = Field(None, description="Its interactions in the log and its recorded events are the history.")
    history: list[Id] | None = Field(None, max_length=MOST_ITEMS, description="Item ids, most recent last.")
    times: list[Time] | None = Field(
        None,
        max_length=MOST_ITEMS,
        description="One time per item of the history: numbers since 1970 or ISO dates. The items are sorted by them.",
    )
    k: K = 10
    keep_seen: StrictBool | None = Field(
        None, description="Recommend items of the history again. By default as in the run's validation."
    )
    allow: list[Id] | None = Field(None, max_length=MOST_FILTERED, description="The only items to recommend.")
    deny: list[Id] | None = Field(None, max_length=MOST_FILTERED, description="Items not to recommend.")
    category: _Text | None = Field(None, description="Recommend only items of this category.")
    explain: StrictBool = Field(
        False, description="Say for each item which items of the history led to it; for single requests, k up to 50."
    )
    run: _Text | None = Field(None, description="Name of a run, if the server has several. By default its first.")


class RecommendBatch(_Given):
    """Several requests at once, answered in the same order."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"requests": [{"user": "A1"}, {"history": ["B00005N7P0"]}]}]}
    )
    requests: list[Recommend] = Field(max_length=MOST_REQUESTS)


class Item(BaseModel):
    """An item of the catalogue."""

    id: int | str
    title: str | None = None


class Reason(BaseModel):
    """An item of the history that led to a recommendation."""

    id: int | str
    title: str | None = None
    attention: float | None = Field(None, description="Share of the model's attention, over the whole history 1.")
    influence: float | None = Field(None, description="By how much the score falls if the item is left out.")
    transitions: float | None = Field(None, description="Part of the score from counted transitions.")


class Recommended(Item):
    """A recommended item."""

    score: Score
    why: list[Reason] | None = Field(None, description="With explain: items of the history, most influential first.")


class Used(BaseModel):
    """What a recommendation is based on."""

    ranked_by: Literal["model", "popularity"] = Field(description="popularity: no item of the history is known.")
    log: int = Field(description="Items of the user in the log.")
    events: int = Field(description="Items of the user's recorded events.")
    sent: int = Field(description="Items sent along.")
    read: int = Field(description="Items that the model read: the most recent ones, up to its maximum length.")
    unknown_items: list[int | str] = Field(description="Ids that are not in the catalogue, and were ignored.")
    notes: list[str] = Field(description="What was guessed or ignored, in words.")


class Recommendation(BaseModel):
    """Recommended items, best first. There are fewer than k if the filters leave fewer."""

    items: list[Recommended]
    run: str
    model_version: str
    used: Used


class Recommendations(BaseModel):
    """The answers to a batch, in its order."""

    results: list[Recommendation]
    model_version: str


class NewEvent(_Given):
    """A user interacted with an item."""

    user: Id
    item: Id
    time: Time | None = Field(None, description="Number since 1970 or ISO date. By default now.")
    event_id: _Text | None = Field(
        None, description="An event of the same id is recorded once. By default a new id, so that nothing is repeated."
    )


class NewEvents(_Given):
    """Events to record, all of them or none. One event may also be sent alone."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"events": [{"event_id": "order-17", "user": "A1", "item": "B00005N7P0", "time": 1700000000}]}]
        },
    )
    events: list[NewEvent] = Field(max_length=MOST_EVENTS)

    @model_validator(mode="before")
    @classmethod
    def _one_event(cls, given: Any) -> Any:
        """A single event may stand alone."""
        return {"events": [given]} if isinstance(given, dict) and "events" not in given else given


class Recorded(BaseModel):
    """The events are durable. Recommendations for their users follow them from now on."""

    recorded: int = Field(description="Number of new events.")
    repeated: int = Field(description="Number of events that were there already.")
    event_ids: list[str]
    unknown_items: list[int | str] = Field(description="Not in the catalogue of the run; recorded all the same.")


class Interaction(BaseModel):
    """An item that a user interacted with."""

    id: int | str
    title: str | None = None
    time: str | None = Field(None, description="ISO date in UTC; null if the log has no times.")
    source: Literal["log", "event"]
    known: bool = Field(description="Whether the item is in the catalogue.")


class History(BaseModel):
    """The newest interactions of a user, oldest first. Of the recorded events, at most 10,000 are looked at."""

    user: int | str
    known: bool = Field(description="Whether the user is in the log.")
    items: list[Interaction]
    total: int = Field(description="Number of all interactions.")


class Similar(BaseModel):
    """The nearest items by the cosine of their embeddings."""

    item: int | str
    items: list[Recommended]
    run: str
    model_version: str


class Found(Item):
    """An item that a search found."""

    categories: list[str]
    interactions: int


class Search(BaseModel):
    """Items whose title or id has all words of the query, most popular first."""

    items: list[Found]


class User(BaseModel):
    """A user of the log."""

    id: int | str
    interactions: int


class Users(BaseModel):
    """Some users of the log."""

    users: list[User]


class Category(BaseModel):
    """A category of the item table."""

    name: str
    items: int


class Categories(BaseModel):
    """All categories, largest first."""

    categories: list[Category]


class Step(BaseModel):
    """What was recommended after a part of a user's history, and what came next."""

    history: list[Item]
    next: Item
    rank: int | None = Field(description="Place of the next item among the recommended ones, from 1; null if missing.")
    items: list[Recommended]


class Replay(BaseModel):
    """A user's last interactions, each predicted from those before it."""

    user: int | str
    steps: list[Step]
    run: str
    model_version: str
    notes: list[str]


class FirstPass(BaseModel):
    """How much of the exact ranking the first pass over a large catalogue finds, measured when the run was loaded."""

    share: float = Field(description="Share of the exact best k items that are found.")
    k: int
    histories: int = Field(description="Number of histories in the sample.")
    scored: float = Field(description="Mean number of items that are scored exactly after the first pass.")


class NewItems(BaseModel):
    """Items that training never saw, given with --new-items."""

    file: str
    added: int = Field(description="Items of the file that the run ranks by their features.")
    note: str | None = Field(description="Why it ranks none; null if it ranks some.")


class Card(BaseModel):
    """A run: what it is, what it was trained on, and how well it ranks."""

    run: str
    model_version: str
    model: str
    loaded: str
    items: int
    users: int
    interactions: int
    max_length: int
    has_times: bool
    has_titles: bool
    categories: int
    transitions_weight: float | None
    first_pass: FirstPass | None = Field(description="Null if every item is scored exactly.")
    trained_on: str
    new_items: NewItems | None = Field(description="Null without --new-items.")
    refused: str | None = Field(description="Why the run folder's current content is not in use; null if it is.")
    config: dict[str, Any]
    metrics: dict[str, Any]


class Cards(BaseModel):
    """All runs of the server. The first is the default."""

    runs: list[Card]


class Epoch(BaseModel):
    """An epoch of the training."""

    epoch: int
    loss: float | None = Field(description="Null if the model is counted.")
    value: float | None = Field(description="The metric on the validation part; null if the epoch was not validated.")


class Curve(BaseModel):
    """How a run was trained, epoch by epoch. A counted model has no epochs with a loss."""

    run: str
    metric: str
    epochs: list[Epoch]


class Reloaded(BaseModel):
    """The version of each run after reloading."""

    versions: dict[str, str]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok"]
    version: str


class Problem(BaseModel):
    """An error in one line: what is wrong, where, and what to do."""

    detail: str
