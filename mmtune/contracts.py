"""What the rooms agree on: small protocols and the rows and batches that travel between them.

Shapes: B rows of a batch, U unique items of one modality in it (identical content is encoded once), D dimensions of
the shared space. Everything keys by the modality's name; nothing outside `modalities/` and `backbones/` spells one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from mmtune.errors import Rejected

if TYPE_CHECKING:
    import random
    from pathlib import Path

    import numpy as np
    from torch import Tensor

JsonObject: TypeAlias = dict[str, Any]
"""A JSON document, or a part of one, as `json` reads and writes it. For files and answers; results are classes with fields."""

Signal: TypeAlias = Any
"""A decoded value: whatever a modality's `decode` returns (a picture, samples with their rate, a string)."""

Pair = tuple[str, str]
"""A directed or undirected pair of modality names, e.g. ("a", "b"); written "a->b" when directed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training or catalog row. `values` maps a modality's name to the original bytes; a missing one is absent."""

    id: str
    group: str | None
    values: Mapping[str, bytes]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """A limit or switch that a modality offers to `pack`; becomes `--name` (dashes) on the command line."""

    type: type
    default: Any
    help: str


class Modality:
    """All that knows what one kind of signal is. Subclass it, then name the class in `modalities.TABLE` (one line).

    A signal is whatever `decode` returns (a picture, samples with a rate, a string, ...); towers' preprocessing takes it.
    """

    name: str = ""
    extensions: tuple[str, ...] = ()
    """File suffixes without dot, as shard members and in folders; the first is the default."""
    columns: tuple[str, ...] = ()
    """Source columns that are found unasked."""
    inline: bool = False
    """True when a source cell is the value itself, False when it is a path relative to the source."""
    json_fields: tuple[str, ...] = ()
    """Fields of a shard's .json member that carry the value when there is no member of its own."""
    options: Mapping[str, Option] = {}
    served: Mapping[str, Any] = {}
    """Limits among `options` that hold for values which arrive over the network, with their defaults there."""
    near_distance: int = -1
    """Near keys that differ in at most this many bits are near duplicates; -1: this modality has no near key."""

    def decode(self, data: bytes) -> Any:
        """Bytes -> signal. Raises Rejected(reason) for anything that is not one; never crashes, never hangs."""
        raise NotImplementedError

    def decode_enough(self, data: bytes, enough: float) -> Any:
        """As `decode` for somebody who needs no more than `enough` of the signal (see Preprocess): what decodes faster and
        still has twice that, where there is such a thing."""
        return self.decode(data)

    def check(self, data: bytes, **options: Any) -> None:
        """Raise Rejected(reason) when the value is undecodable, empty, or over a limit of `options`."""
        self.decode(data)

    def admit(self, data: bytes, **options: Any) -> int:
        """As `check`, by what the header says where there is one: nothing of a value over a limit is decoded. Returns about how
        many bytes of memory decoding takes."""
        self.check(data, **options)
        return len(data)

    def coerce(self, value: Any) -> Any:
        """What a user hands to `encode` (path, array, library object, ...) -> signal. Raises Rejected."""
        raise NotImplementedError

    def from_file(self, path: "str | Path") -> Any:
        """The signal in a file. Raises Rejected naming the path."""
        try:
            with open(path, "rb") as f:
                return self.decode(f.read())
        except OSError as e:
            raise Rejected(f"{path}: {e.strerror}") from None
        except Rejected as e:
            raise Rejected(f"{path}: {e}") from None

    def content_key(self, data: bytes) -> bytes:
        """Identity of content: equal keys are the same item. Default: the bytes themselves."""
        return data

    def near_key(self, signal: Any) -> int | None:
        """A 64-bit signature of a signal that survives re-encoding, scaling and the like; None when it has no structure."""
        return None

    def augment(self, **options: Any) -> "Callable[[Any, random.Random], Any]":
        """A training-time augmentation `(signal, rng) -> signal`. Raises RecipeError for an unknown option."""
        raise NotImplementedError

    def mix(self, signal: Any, other: Any, share: float) -> Any:
        """`signal` with `other` in its background, which has `share` (0 to 1) of the whole. For training's `mixup`."""
        raise NotImplementedError

    def show(self, data: bytes) -> str:
        """An HTML fragment that shows or plays the value, self-contained (data: URLs)."""
        raise NotImplementedError

    def card(self, data: bytes, label: str = "") -> str:
        """As `show`, small: a page holds hundreds. `label` names the value for those who do not see it."""
        return self.show(data)

    def mime(self, data: bytes) -> str:
        """The value's media type, for whoever hands it out over HTTP; by its bytes, never by a name."""
        return "application/octet-stream"

    def widget(self, **options: Any) -> Any:
        """A gradio component by which a person gives a value: words where it is inline, else an uploaded file."""
        import gradio

        return (
            gradio.Textbox(**options) if self.inline else gradio.File(file_types=[f".{e}" for e in self.extensions], **options)
        )


@runtime_checkable
class Preprocess(Protocol):
    """A checkpoint's own preprocessing: picklable, without weights, so that data workers can run it."""

    def __call__(self, signal: Any, rng: "random.Random | None" = None) -> "dict[str, Tensor]":
        """One signal -> tensors without a batch axis. Deterministic without `rng`; with it (training) may crop at random."""
        ...

    def collate(self, items: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """Items -> one batch of inputs for the tower. Items of several windows add "segments" [W], window -> item."""
        ...

    # Optional: `fixed(signal) -> bool`, False where training with `rng` sees other numbers each time (a random crop);
    # `enough: float`, the size that signals are scaled to, in the modality's own unit. An augmentation's optional `zoom` says
    # how many times more it may need, infinity where the original's size matters.


class Tower(Protocol):
    """An encoder of one modality into the shared space (an nn.Module)."""

    modality: str
    dim: int
    preprocess: Preprocess

    def __call__(self, inputs: "dict[str, Tensor]") -> "Tensor":
        """Inputs of U items -> [U, D], not normalised."""
        ...


@dataclass(slots=True)
class Batch:
    """Rows on their way through the trainer. All tensors of one batch live on one device.

    ids [B] row ids; index [B] row numbers in the dataset (int64); queries [B] bool, False for rows that serve only as
    candidates (mined negatives); inputs[m] the tower's inputs for U_m unique items; slot[m] [B] row -> unique item or -1
    where the row lacks m; labels[k] [B] int64 with k in {"id", "group"} and every modality (content): equal non-zero
    labels mean "the same thing", 0 means none; columns[c] [B] float32 numeric metadata that an objective asked for;
    hard["a->b"] [2, n] int64: a row that asks, and a row mined as its negative in that direction. A row that only serves as
    candidate is a negative of the queries that mined it and of no other: drawn for being hard, it would weigh too much for all.
    """

    ids: list[str]
    index: "Tensor"
    queries: "Tensor"
    inputs: "dict[str, dict[str, Tensor]]"
    slot: "dict[str, Tensor]"
    labels: "dict[str, Tensor]"
    columns: "dict[str, Tensor]" = field(default_factory=dict)
    hard: "dict[str, Tensor]" = field(default_factory=dict)

    def moved(self, move: "Callable[[Tensor], Tensor]") -> "Batch":
        """The batch with `move` of every tensor."""

        def each(x: Any) -> Any:
            return {k: each(v) for k, v in x.items()} if isinstance(x, dict) else move(x)

        names = ("index", "queries", "inputs", "slot", "labels", "columns", "hard")
        return Batch(self.ids, *(each(getattr(self, n)) for n in names))


class Scorer(Protocol):
    """A teacher, a verifier, a judge: anything that scores pairs of signals."""

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> Sequence[float]:
        """One float a pair, higher is more alike."""
        ...


def direction(a: str, b: str) -> str:
    """The name of a directed pair: queries of `a`, candidates of `b`."""
    return f"{a}->{b}"


@dataclass(slots=True)
class Embeddings:
    """Vectors of one modality for N rows of a corpus; identity travels with them.

    ids [N] row ids; groups [N]; labels[k] int64 [N] as in Batch; vectors float32 [N, D], unit length; fingerprint of the model;
    queries [N, D] the same rows as they ask, where the model has other words around a query than around what is found.
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
