"""Columns and settings of `mmtune pairs logs`."""

from dataclasses import asdict, dataclass, field

from mmtune.contracts import JsonObject
from mmtune.errors import DataError

BIAS_NONE, BIAS_ESTIMATE = "none", "estimate"


@dataclass(frozen=True)
class LogColumns:
    """Names of the columns of a log; None where the log has none.

    query, item: what was searched for, and the id of an item that was shown
    position: rank of the item in the result list, from 1 (a log that counts from 0 is recognised)
    clicked, cart, order: whether the item was clicked, put into the cart, ordered: booleans, numbers (above 0), or yes and no
    event: what a row is about: impression, click, cart or order. A row is then an event, not an impression
    time: date and time, or seconds, milliseconds, microseconds or nanoseconds since 1970
    session, user: who searched; a user has several sessions
    search: id of one displayed result list
    """

    query: str
    item: str
    position: str | None = None
    clicked: str | None = None
    cart: str | None = None
    order: str | None = None
    event: str | None = None
    time: str | None = None
    session: str | None = None
    user: str | None = None
    search: str | None = None

    def named(self) -> dict[str, str]:
        """Role -> column, without the roles that the log does not have."""
        return {role: column for role, column in asdict(self).items() if column}

    def check(self) -> None:
        """Raise DataError if the columns do not say what was clicked."""
        if not (self.clicked or self.event or self.order or self.cart):
            raise DataError(
                "name the column that says what was clicked: --clicked COL (or --cart, --order, or --event COL of events)"
            )
        if self.event and (self.clicked or self.cart or self.order):
            raise DataError("--event COL names the kind of each row, so --clicked, --cart and --order do not apply")
        if self.event and not (self.search or self.session or self.user):
            raise DataError("--event needs --search, --session or --user, which tell the events of one result list")


@dataclass(frozen=True)
class LogSettings:
    """Settings of `mmtune pairs logs`; `mmtune.pairs_from_logs` describes them."""

    position_bias: str | float = BIAS_ESTIMATE
    clip: float = 0.02
    min_impressions: int = 5
    min_clicks: int = 2
    min_skips: int = 3
    negatives: int = 8
    min_reformulations: int = 3
    prior: float | None = None
    remove_bots: bool = True
    max_per_minute: int = 60
    split_time: str | None = None
    eval_fraction: float = 0.0
    keep_case: bool = False
    encoding: str | None = None
    memory: str = "700MB"
    threads: int | None = None
    bias: str | float = field(init=False, default=BIAS_ESTIMATE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", _bias(self.position_bias))
        if not 0 < self.clip <= 1:
            raise DataError(f"--clip {self.clip}: must be above 0 and at most 1")
        if not 0 <= self.eval_fraction < 1:
            raise DataError(f"--eval-fraction {self.eval_fraction}: must be from 0 to below 1")
        if self.split_time is not None and self.eval_fraction:
            raise DataError("--split-time and --eval-fraction: give one of them")
        for name in ("min_impressions", "min_clicks", "min_skips", "min_reformulations", "max_per_minute"):
            if getattr(self, name) < 1:
                raise DataError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.negatives < 0 or (self.prior or 0) < 0:
            raise DataError("--negatives and --prior must not be negative")

    @property
    def splits(self) -> bool:
        """Whether a later part of the log is kept for evaluation."""
        return self.split_time is not None or self.eval_fraction > 0

    def identity(self) -> JsonObject:
        """The settings that the output depends on."""
        return {k: v for k, v in asdict(self).items() if k not in ("memory", "threads", "bias")}


def _bias(value: str | float) -> str | float:
    if value in (BIAS_ESTIMATE, BIAS_NONE):
        return value
    try:
        exponent = float(value)
    except ValueError:
        exponent = -1.0
    if not 0 <= exponent <= 10:
        raise DataError(
            f"--position-bias {value}: must be estimate, none, or the exponent E of an examination probability of 1 / rank**E"
        )
    return exponent
