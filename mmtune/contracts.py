"""Interfaces and data types that several subpackages of mmtune share.

| interfaces and types | defined in |
|---|---|
| `Row`, `Batch`, `Embeddings`, `Modality`, `Preprocess`, `Augmentation`, `Scorer` | this module |
| `Tower`, `LogitScale`, `Backbone`, `Family` | `mmtune.backbones` |
| `ContrastiveBlock`, `ScoredPairs`, `DistillationBlock`: the inputs of the three kinds of loss | `mmtune.losses` |
| miner sources and false-negative guards | `mmtune.mining` |
| evaluation tasks and metrics | `mmtune.evaluation` |
| `Store` | `mmtune.index.stores` |

Letters in shapes:
    B: rows of a batch
    U: unique items of one modality in a batch; identical content is encoded only once
    D: dimensions of the shared embedding space

Modalities are referred to by their names in strings. No identifier outside `modalities/` and `backbones/` contains the name of a
modality, so that users can register modalities of their own.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from mmtune.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as the module `json` reads and writes it. Used for files and HTTP responses; results of functions are classes."""

Signal: TypeAlias = Any
"""A decoded value: whatever a modality's `decode` returns (an image, audio samples with their sample rate, a string)."""

Pair = tuple[str, str]
"""A pair of modality names, e.g. ("a", "b"). A directed pair (queries -> candidates) is also written as the string "a->b"."""

Augmentation: TypeAlias = Callable[[Signal, random.Random], Signal]
"""A training-time augmentation: a function (signal, rng) -> augmented signal.

It must use no other random generator than `rng`, so that a resumed run gets the same signals as an uninterrupted one.

An optional attribute `zoom: float` (default 1) is a factor on the size at which the signal is decoded, relative to the input size
of the tower. An augmentation that keeps only a part of the signal, e.g. a random crop, needs a factor above 1, so that the part
still has the input size. Infinity requests decoding at full resolution.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a dataset or item of a catalog.

    id: unique within the dataset
    group: rows with the same group show the same thing, e.g. one product; None means no group
    values: modality -> the encoded bytes, as in the source file; modalities that the row lacks are not keys
    meta: metadata column -> value
    """

    id: str
    group: str | None
    values: Mapping[str, bytes]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """A numeric limit that a modality adds to `pack`. On the command line it is an option: `max_pixels` becomes `--max-pixels`."""

    type: type[int] | type[float]
    default: float
    help: str


class Modality:
    """Base class of modalities: decoding, limits, content identity, augmentation and display of one kind of signal.

    To add a modality, subclass this class and register it with `modalities.register(name, "package.module:Class")`. A subclass
    must define `name`, `extensions`, `decode` and `coerce`; everything else has a default or is needed for single features only.
    """

    name: str = ""
    extensions: tuple[str, ...] = ()
    """File extensions without the dot, for files in shards and in source folders. The first one is the default."""
    columns: tuple[str, ...] = ()
    """Usual column names: `pack` takes a source column with one of these names for this modality if the user names no column."""
    language: bool = False
    """True for text modalities: signals are natural-language strings, so queries can be typed, and prompts and class names exist."""
    inline: bool = False
    """True if a cell of a source table contains the value itself, False if it contains a file path relative to the source."""
    json_fields: tuple[str, ...] = ()
    """Fields of a sample's .json file in a shard that are read as the value if the sample has no file of this modality."""
    options: Mapping[str, Option] = {}
    """Limits that `check` and `check_header` take as keyword arguments."""
    request_limits: Mapping[str, float] = {}
    """Option name -> limit for values that arrive in HTTP requests; its keys are keys of `options`."""
    augmentations: Mapping[str, str] = {}
    """Name of a step of the recipe's list `augment.NAME` -> "package.module:Class", in addition to the registered ones. The class takes
    the step's options as keyword arguments, with types, and a docstring of `__init__` that describes each; instances are `Augmentation`s."""
    near_duplicate_distance: int = -1
    """Two values are near duplicates if their `near_duplicate_key`s differ in at most this many bits. -1 means that this modality
    has no near-duplicate keys."""

    def decode(self, data: bytes) -> Signal:
        """Decode bytes to a signal. Raises Rejected with the reason if that is impossible. Must not raise any other exception."""
        raise NotImplementedError

    def decode_scaled(self, data: bytes, input_size: float) -> Signal:
        """Like `decode`, but may decode at a reduced resolution, which is faster.

        The result must keep at least twice `input_size`, the size to which the tower's preprocessing scales signals (see
        `Preprocess`). By default the signal is decoded at full resolution.
        """
        return self.decode(data)

    def check(self, data: bytes, **options: float) -> None:
        """Raise Rejected with the reason if the value cannot be decoded, is empty, or exceeds a limit in `options`."""
        self.decode(data)

    def check_header(self, data: bytes, **options: float) -> int:
        """Like `check`, but reads only the file header if the format has one, so that values over a limit are not decoded.

        Returns an estimate of the memory in bytes that decoding the value needs.
        """
        self.check(data, **options)
        return len(data)

    def coerce(self, value: object) -> Signal:
        """Convert a user's value (a path, array, library object, ...) to a signal. Raises Rejected if that is impossible."""
        raise NotImplementedError

    def encode_value(self, value: object) -> bytes:
        """Encode a user's value (an array, a library object, an open file, ...) to bytes, without loss: decoding them gives
        `coerce(value)`. Raises Rejected if that is impossible, which is the default for all values but bytes."""
        if isinstance(value, bytes):
            return value
        raise Rejected(f"a {type(value).__name__} cannot be encoded as {self.name}")

    def accepts(self, value: object) -> bool:
        """Whether `Model.encode(value)`, called without a modality, may treat `value` as a value of this modality.

        Decides by the type and, for a path, by the file extension; reads no file. By default accepts paths (`str` or `Path`) with
        one of the `extensions`.
        """
        suffix = str(value).rpartition(".")[2].lower() if isinstance(value, str) or hasattr(value, "__fspath__") else ""
        return suffix in self.extensions

    def cut(self, signal: Signal, seconds: float) -> list[tuple[float, Signal]]:
        """Cut a signal with a time axis into windows that overlap by half: [(start in seconds, window), ...].

        Returns [] if the signal has no time axis, which is the default, or is not longer than a window.
        """
        return []

    def from_file(self, path: "str | Path") -> Signal:
        """Read and decode a file. Raises Rejected, with the path in the message, if that is impossible."""
        try:
            with open(path, "rb") as f:
                return self.decode(f.read())
        except OSError as e:
            raise Rejected(f"{path}: {e.strerror}") from None
        except Rejected as e:
            raise Rejected(f"{path}: {e}") from None

    def reencode(self, data: bytes) -> tuple[bytes, str]:
        """Convert a value to an encoding that `decode` reads, if that is possible without loss, e.g. a Windows-1252 text to UTF-8.

        Returns the bytes and a description of the change, "" if there is none. By default the bytes are returned unchanged.
        """
        return data, ""

    def content_key(self, data: bytes) -> bytes:
        """The content key of a value: two values with equal keys count as the same item. By default the bytes themselves."""
        return data

    def near_duplicate_key(self, signal: Signal) -> int | None:
        """A 64-bit perceptual hash that hardly changes when the value is re-encoded or scaled.

        None for a signal without structure, e.g. a plain-coloured image or silence.
        """
        return None

    def augment(self, **options: Any) -> Augmentation:
        """Build a training-time augmentation from the recipe block `augment.NAME`. Raises RecipeError for an unknown option."""
        raise NotImplementedError

    def mix(self, signal: Signal, other: Signal, share: float) -> Signal:
        """Mix `other` into `signal` with the weight `share` (0 to 1), for the recipe key `augment.NAME.mixup`."""
        raise NotImplementedError

    def to_html(self, data: bytes) -> str:
        """A self-contained HTML fragment (with data: URLs) that shows or plays the value."""
        raise NotImplementedError

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """Like `to_html`, but smaller, for pages with hundreds of values. `label` is the alternative text for screen readers."""
        return self.to_html(data)

    def view_html(self, data: bytes, label: str, side: int) -> str:
        """Like `thumbnail_html`, with pictures whose sides are at most `side` pixels: for the grid and the panel of the search page."""
        return self.thumbnail_html(data, label)

    def picture(self, data: bytes, side: int) -> Signal:
        """Draw the value as an RGB picture of Pillow whose sides are at most `side` pixels, for experiment trackers. NotImplementedError if
        the modality has none."""
        raise NotImplementedError

    def examples(self) -> list[Signal]:
        """Return three synthetic signals of different sizes, always the same ones. `export` traces and checks a tower with them.

        Raises NotImplementedError if the modality has none; `export` then needs `--data`.
        """
        raise NotImplementedError

    def chat_part(self, data: bytes) -> dict[str, object]:
        """Return the value as a content part of a chat message of the OpenAI API, for language models that take this modality.

        Large values may be scaled down. Raises Rejected if the value cannot be decoded, and NotImplementedError if the API has no
        such content part.
        """
        raise NotImplementedError

    def media_type(self, data: bytes) -> str:
        """The media type (MIME type) of the value for an HTTP response. Decided by the bytes, never by a file name."""
        return "application/octet-stream"


@runtime_checkable
class Preprocess(Protocol):
    """The preprocessing of one modality that belongs to a checkpoint. Has no weights and can be pickled.

    Optional attributes:
        is_deterministic(signal) -> bool: False if preprocessing with an `rng` is random for this signal (e.g. a random crop);
            results for which it is True are cached in training. Without the attribute all results count as deterministic
        input_size: float | None: the size to which signals are scaled, in the modality's own unit, e.g. pixels
        windows(item) -> int: the number of windows of an item, where long signals have several, so that they are collated and
            encoded in groups of bounded size
        window_seconds: float: the length of such a window, if signals have a time axis; pages show the scores of a longer signal's
            windows, to say where in it something is
        raw_inputs(signals) -> dict[str, Tensor]: the windows of signals as plain samples, where preprocessing computes features
            from them, and `feature_graph() -> torch.nn.Module`, which computes the inputs of the tower from these samples by
            operations that every runtime has, so that `export` can put them into the exported graph
        lengths(inputs) -> int [W] or None: the positions (tokens, samples) of each row of collated inputs that are no padding, where
            padding is at the end and does not change embeddings, and `cut(inputs, length)`, which returns the inputs without the
            positions after `length`. With both, training can encode values of like length together
            (`train.micro_batch_tokens`, `train.length_buckets`)
    """

    def __call__(self, signal: Signal, rng: random.Random | None = None) -> "dict[str, Tensor]":
        """Preprocess one signal; returns tensors without a batch axis.

        Without `rng` the result is deterministic. With `rng`, which is given in training, it may be random, e.g. a random crop.
        """
        ...

    def collate(self, items: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
        """Collate the results of `__call__` for several items to one batch of inputs for the tower.

        If long signals are split into windows, the batch holds all W windows and a tensor "segments": int [W], sorted, the item
        index of each window.
        """
        ...


@dataclass(slots=True)
class LoadTimes:
    """What the loader has done for a batch. Times are those of the threads and processes that did it, in seconds.

    read: reading bytes from disk or network; for streamed data, waiting for the threads that read shards
    decode: decoding values
    preprocess: augmentation, preprocessing and collation
    size: bytes of the values that were read
    values: values that were prepared
    cached: of these, values whose decoded form or inputs were in the cache
    """

    read: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    size: int = 0
    values: int = 0
    cached: int = 0

    def add(self, other: "LoadTimes") -> None:
        """Add the numbers of another batch."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass(slots=True)
class Batch:
    """A batch of B rows for training. All its tensors are on the same device.

    ids: [B], row ids
    index: int64 [B], row numbers in the dataset
    is_query: bool [B]; False for rows that are only candidates (mined negatives)
    inputs: modality m -> inputs of the tower for the U_m unique items of m in the batch
    item_of_row: modality -> int64 [B], index of the row's item among the unique items; -1 if the row lacks the modality; both also
        have the key `second_view(m)` if the objective compares two views of an item: the items of m in query rows once more
    labels: "id", "group" or a modality -> int64 [B]; equal non-zero labels mean the same id, group or content; 0 means no label. For losses
        on class labels batches of streamed rows also have the labels of their classes (`class_values.label_name`)
    columns: name -> float32 [B], the numeric metadata columns that the objective needs
    times: what the loader has done for the batch
    hard_negatives: direction "a->b" -> int64 [2, n], batch positions of n queries (first row of the tensor) and of the negative
        that was mined for each of them (second row)

    A row with is_query False is a negative only for the queries that it was mined for. Used as a negative for all queries of the
    batch, such hard negatives would have too much weight in the loss.
    """

    ids: list[str]
    index: "Tensor"
    is_query: "Tensor"
    inputs: "dict[str, dict[str, Tensor]]"
    item_of_row: "dict[str, Tensor]"
    labels: "dict[str, Tensor]"
    columns: "dict[str, Tensor]" = field(default_factory=dict)
    hard_negatives: "dict[str, Tensor]" = field(default_factory=dict)
    times: LoadTimes = field(default_factory=LoadTimes)

    def pin_memory(self) -> "Batch":
        """Return a batch in page-locked memory, from which copies to a CUDA device are fast. torch's DataLoader calls it."""
        return self.map_tensors(lambda x: x.pin_memory())

    def map_tensors(self, function: "Callable[[Tensor], Tensor]", inputs: bool = True) -> "Batch":
        """Return a batch with `function` applied to every tensor, e.g. to copy it to a device. inputs: also to those of the items."""

        def each(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
            return {k: function(v) for k, v in tensors.items()}

        return replace(
            self,
            index=function(self.index),
            is_query=function(self.is_query),
            inputs={m: each(x) if inputs else x for m, x in self.inputs.items()},
            item_of_row=each(self.item_of_row),
            labels=each(self.labels),
            columns=each(self.columns),
            hard_negatives=each(self.hard_negatives),
        )


class Scorer(Protocol):
    """Scores pairs of signals, e.g. a cross-encoder. Used as the teacher of a distillation loss or to verify mined negatives."""

    def score(self, pairs: Sequence[tuple[Signal, Signal]]) -> Sequence[float]:
        """Return one score per pair. A higher score means more similar."""
        ...


SECOND_VIEW = "+view"


def second_view(modality: str) -> str:
    """The key of the second views of a modality's items in a `Batch`."""
    return modality + SECOND_VIEW


def modality_of_view(key: str) -> str:
    """The modality of a key of `Batch.inputs`: that of `second_view(m)` and of m is m."""
    return key.removesuffix(SECOND_VIEW)


def direction(a: str, b: str) -> str:
    """The name "a->b" of a retrieval direction: queries of modality `a`, candidates of modality `b`."""
    return f"{a}->{b}"


@dataclass(slots=True)
class Embeddings:
    """Embeddings of one modality for N rows of a dataset, with the ids and labels of the rows.

    ids: [N], row ids
    groups: [N], the group of each row or None
    labels: as in `Batch`, int64 [N] each
    vectors: float32 [N, D], L2-normalised embeddings, used as candidates
    fingerprint: fingerprint of the model that computed them
    queries: float32 [N, D], embeddings of the same rows with the query prompt; None if the model has no query prompt that
        differs from the default prompt
    """

    ids: list[str]
    groups: list[str | None]
    labels: "dict[str, np.ndarray]"
    vectors: "np.ndarray"
    fingerprint: str = ""
    queries: "np.ndarray | None" = None

    @property
    def query_vectors(self) -> "np.ndarray":
        """The embeddings to use when the rows are queries: `queries`, or `vectors` if `queries` is None."""
        return self.vectors if self.queries is None else self.queries
