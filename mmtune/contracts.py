"""Interfaces and data types that several rooms share.

| what | where |
|---|---|
| `Row`, `Batch`, `Embeddings`, `Modality`, `Preprocess`, `Augmentation`, `Scorer` | here |
| `Tower`, `LogitScale`, `Backbone`, `Family` | `mmtune.backbones` |
| `ContrastiveBlock`, `ScoredPairs`, `DistillationBlock`: the inputs of the three kinds of loss | `mmtune.losses` |
| miner sources and false-negative guards | `mmtune.mining` |
| evaluation tasks and metrics | `mmtune.evaluation` |
| `Store` | `mmtune.index.protocols` |

Shapes: B rows of a batch, U unique items of one modality in it (identical content is encoded once), D dimensions of the shared
space. Modalities are keyed by name; no identifier outside `modalities/` and `backbones/` spells one.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from mmtune.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

JsonObject: TypeAlias = dict[str, Any]
"""A JSON document, or a part of one, as `json` reads and writes it. For files and answers; results are classes with fields."""

Signal: TypeAlias = Any
"""A decoded value: whatever a modality's `decode` returns (a picture, samples with their rate, a string)."""

Pair = tuple[str, str]
"""A directed or undirected pair of modality names, e.g. ("a", "b"); written "a->b" when directed."""

Augmentation: TypeAlias = Callable[[Signal, random.Random], Signal]
"""A training-time augmentation. It draws from the generator that it is given and from no other, so that a resumed run sees the
same signals. An optional attribute `zoom: float` (1 without it) says how many times the tower's input size the signal must be
decoded at, so that what the augmentation keeps of it still fills the input; infinity where it works on the original's pixels."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training or catalog row. `values` maps a modality's name to the original bytes; a missing one is absent."""

    id: str
    group: str | None
    values: Mapping[str, bytes]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """A numeric limit that a modality offers to `pack`; becomes `--name` (with dashes) on the command line."""

    type: type[int] | type[float]
    default: float
    help: str


class Modality:
    """Everything that depends on one kind of signal: decoding, limits, identity of content, augmentation, display.

    Subclass it, then add it to the table: `modalities.register(name, "package.module:Class")`, or one line in
    `modalities.TABLE`. Only `decode` and `coerce` must be written.
    """

    name: str = ""
    extensions: tuple[str, ...] = ()
    """File suffixes without dot, for shard members and source folders; the first is the default."""
    columns: tuple[str, ...] = ()
    """Names of source columns that hold this modality when `pack` is given none."""
    language: bool = False
    """True when signals are strings of natural language: queries can be typed, prompts and class names can be encoded."""
    inline: bool = False
    """True when the cell of a source table holds the value itself, False when it holds a path relative to the source."""
    json_fields: tuple[str, ...] = ()
    """Fields of a shard's .json member that hold the value when the sample has no member of this modality."""
    options: Mapping[str, Option] = {}
    """Limits that `check` and `check_header` take as keyword arguments."""
    request_limits: Mapping[str, float] = {}
    """Defaults of those `options` that limit values which arrive in HTTP requests."""
    near_duplicate_distance: int = -1
    """Two `near_duplicate_key`s that differ in at most this many bits are near duplicates; -1: this modality has no such key."""

    def decode(self, data: bytes) -> Signal:
        """Bytes -> signal. Raises Rejected(reason) for undecodable bytes; never raises anything else, never hangs."""
        raise NotImplementedError

    def decode_scaled(self, data: bytes, input_size: float) -> Signal:
        """As `decode`, at a reduced resolution where that is faster. The result keeps at least twice `input_size`, the size that
        the tower scales signals to (`Preprocess.input_size`)."""
        return self.decode(data)

    def check(self, data: bytes, **options: float) -> None:
        """Raise Rejected(reason) when the value is undecodable, empty, or over a limit of `options`."""
        self.decode(data)

    def check_header(self, data: bytes, **options: float) -> int:
        """As `check`, by the header alone where the format has one, so that no value over a limit is decoded. Returns an estimate
        of the bytes of memory that decoding takes."""
        self.check(data, **options)
        return len(data)

    def coerce(self, value: object) -> Signal:
        """A user's value (path, array, library object, ...) -> signal. Raises Rejected."""
        raise NotImplementedError

    def accepts(self, value: object) -> bool:
        """Whether `Model.encode(value)` without a modality's name may take `value` for this modality, judged by its type and, for
        a path, its suffix; nothing is read. Default: paths (`str` or `Path`) whose suffix is one of `extensions`."""
        suffix = str(value).rpartition(".")[2].lower() if isinstance(value, str) or hasattr(value, "__fspath__") else ""
        return suffix in self.extensions

    def from_file(self, path: "str | Path") -> Signal:
        """The signal in a file. Raises Rejected naming the path."""
        try:
            with open(path, "rb") as f:
                return self.decode(f.read())
        except OSError as e:
            raise Rejected(f"{path}: {e.strerror}") from None
        except Rejected as e:
            raise Rejected(f"{path}: {e}") from None

    def reencode(self, data: bytes) -> tuple[bytes, str]:
        """(bytes that `decode` reads, what was changed or ""): for values in an encoding that can be recognised and rewritten
        without loss, such as captions that are not UTF-8. Default: unchanged."""
        return data, ""

    def content_key(self, data: bytes) -> bytes:
        """Identity of content: values with equal keys are the same item. Default: the bytes themselves."""
        return data

    def near_duplicate_key(self, signal: Signal) -> int | None:
        """A 64-bit perceptual hash that survives re-encoding, scaling and the like; None when the signal has no structure."""
        return None

    def augment(self, **options: Any) -> Augmentation:
        """A training-time augmentation, built from a recipe's `augment.NAME` block. Raises RecipeError for an unknown option."""
        raise NotImplementedError

    def mix(self, signal: Signal, other: Signal, share: float) -> Signal:
        """`signal` mixed with `other` as background, whose weight in the mix is `share` (0 to 1). Used by `augment.NAME.mixup`."""
        raise NotImplementedError

    def to_html(self, data: bytes) -> str:
        """An HTML fragment that shows or plays the value, self-contained (data: URLs)."""
        raise NotImplementedError

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """As `to_html`, small, for pages with hundreds of values. `label` is the accessible name of the value."""
        return self.to_html(data)

    def media_type(self, data: bytes) -> str:
        """The value's media type (MIME) for an HTTP response, from its bytes, never from a name."""
        return "application/octet-stream"

    def input_component(self, label: str, elem_id: str) -> Any:
        """The gradio component for a query of this modality: a text box for language, else a file upload."""
        import gradio

        if self.language:
            return gradio.Textbox(label=label, elem_id=elem_id)
        return gradio.File(file_types=[f".{e}" for e in self.extensions], label=label, elem_id=elem_id)


@runtime_checkable
class Preprocess(Protocol):
    """A checkpoint's own preprocessing of one modality: picklable, without weights, so that data workers can run it.

    Two optional attributes: `is_deterministic(signal) -> bool`, False where training (with `rng`) gets other numbers each time,
    e.g. a random crop; `input_size: float | None`, the size that signals are scaled to, in the modality's own unit.
    """

    def __call__(self, signal: Signal, rng: random.Random | None = None) -> "dict[str, Tensor]":
        """One signal -> tensors without a batch axis. Deterministic without `rng`; with it (training) may crop at random."""
        ...

    def collate(self, items: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """Items -> one batch of inputs for the tower. Items of several windows add "segments" [W], window -> item."""
        ...


@dataclass(slots=True)
class Batch:
    """Rows on their way through the trainer. All tensors of one batch lie on one device.

    ids [B] row ids; index [B] row numbers in the dataset (int64); is_query [B] bool, False for rows that serve only as
    candidates (mined negatives); inputs[m] the tower's inputs for U_m unique items; item_of_row[m] [B] row -> unique item, -1
    where the row lacks m; labels[k] [B] int64 with k in {"id", "group"} and every modality (content): equal non-zero
    labels mean "the same thing", 0 means none; columns[c] [B] float32 numeric metadata that an objective needs;
    hard_negatives["a->b"] [2, n] int64: row of a query, row of a negative mined for it in that direction. A row that only serves
    as candidate is a negative of the queries that mined it and of no other: being hard, it would weigh too much for all.
    """

    ids: list[str]
    index: "Tensor"
    is_query: "Tensor"
    inputs: "dict[str, dict[str, Tensor]]"
    item_of_row: "dict[str, Tensor]"
    labels: "dict[str, Tensor]"
    columns: "dict[str, Tensor]" = field(default_factory=dict)
    hard_negatives: "dict[str, Tensor]" = field(default_factory=dict)

    def map_tensors(self, function: "Callable[[Tensor], Tensor]") -> "Batch":
        """The batch with `function` applied to every tensor, e.g. a copy to a device."""

        def each(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
            return {k: function(v) for k, v in tensors.items()}

        return replace(
            self,
            index=function(self.index),
            is_query=function(self.is_query),
            inputs={m: each(x) for m, x in self.inputs.items()},
            item_of_row=each(self.item_of_row),
            labels=each(self.labels),
            columns=each(self.columns),
            hard_negatives=each(self.hard_negatives),
        )


class Scorer(Protocol):
    """Scores pairs of signals: a cross-encoder as a teacher of distillation, a verifier of mined negatives."""

    def score(self, pairs: Sequence[tuple[Signal, Signal]]) -> Sequence[float]:
        """One float a pair; a higher one means more similar."""
        ...


def direction(a: str, b: str) -> str:
    """The name of a directed pair: queries of `a`, candidates of `b`."""
    return f"{a}->{b}"


@dataclass(slots=True)
class Embeddings:
    """Vectors of one modality for N rows of a dataset, with their ids and labels.

    ids [N] row ids; groups [N]; labels[k] int64 [N] as in Batch; vectors float32 [N, D], unit length; fingerprint of the model;
    queries [N, D] the same rows encoded with the query prompt, where the model has one that differs from the default prompt.
    """

    ids: list[str]
    groups: list[str | None]
    labels: "dict[str, np.ndarray]"
    vectors: "np.ndarray"
    fingerprint: str = ""
    queries: "np.ndarray | None" = None

    @property
    def query_vectors(self) -> "np.ndarray":
        """The vectors of the query side of a direction."""
        return self.vectors if self.queries is None else self.queries
