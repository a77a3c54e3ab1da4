"""The recipe block `data:`: training data, validation data, and how rows are loaded."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from mmtune.recipe.batches_block import BatchesBlock, RandomBatches
from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.sizes import parse_size


def _check_size(value: int | str) -> int | str:
    try:
        parse_size(value, minimum=0)
    except ValueError as e:
        raise invalid(str(e)) from None
    return value


Size = Annotated[int | str, AfterValidator(_check_size)]
"""A number of bytes, or a string such as "256MB" or "2GiB"."""


class TrainingSet(RecipeBlock):
    """A training set and its sampling weight."""

    path: str = Field(description="packed shards: a directory, a brace pattern or a URL")
    weight: float = Field(
        1.0,
        gt=0,
        description="sampling weight: with 2 every row is used twice per epoch; with 0.5 half of the rows are used, different "
        "ones in each epoch",
    )


class DataConfig(RecipeBlock):
    """Training data, validation data, and how rows are loaded.

    Data are packed shards: a directory, a brace pattern or a URL.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"general": "retention"}

    train: str | TrainingSet | list[str | TrainingSet] = Field(
        description="training data, or a list of training sets with sampling weights"
    )
    val: str | None = Field(
        None, description="validation data, evaluated after each epoch; the best checkpoint on them becomes the artifact"
    )
    retention: str | None = Field(
        None,
        description="data of a general domain, on which the model must not get worse; evaluated after each epoch together with "
        "`val`",
    )
    allow_trained: bool = Field(
        False,
        description="true: only warn about rows of `val` and `retention` that are also training rows; false: refuse them",
    )
    negatives: bool | str | list[str] = Field(
        True,
        description="explicit negatives; true: those that `mmtune pack` found in the source (negatives.parquet beside the shards); "
        "a file, or a list: also those of a CSV, JSONL or Parquet file with the columns query_id, negative_id and perhaps direction; "
        "false: none",
    )
    negatives_per_query: int | None = Field(
        None,
        ge=0,
        description="number of explicit negatives per query that join its batch; null: all, but at most 4; a query with more draws "
        "others in each epoch",
    )
    read: Literal["index", "stream"] = Field(
        "index",
        description="how training data are read; index: any row at any time, with a table of all rows; stream: shards from start "
        "to end, for data larger than disk or memory",
    )
    val_read: Literal["index", "stream"] | None = Field(
        None,
        description="with read: stream, how `val` and `retention` are read; index: with random access, remote shards are copied to the "
        "cache; stream: from start to end at each validation, embedded while they are read, without copies but in the cache of "
        "`cache_size`; null: stream for pipe:COMMAND, else index",
    )
    cache_size: Size = Field("0", description="with read: stream, the size of the cache of remote shards on disk; 0: no cache")
    shuffle_buffer: int = Field(
        4096,
        ge=1,
        description="with read: stream, the number of rows, over all processes, from which batches are drawn at random",
    )
    lanes: int = Field(
        8,
        ge=1,
        description="with read: stream, the number of shards that are read at once, over all processes; each process reads at least one. "
        "Batches depend on it",
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="number of threads or processes that load and preprocess the next batches during training; auto: one for each "
        "CPU, but at most 16 beside a GPU and 4 beside training on the CPU; each holds a batch",
    )
    worker_kind: Literal["threads", "processes"] = Field(
        "threads",
        description="threads share one cache; processes (Linux) also share no interpreter lock, which is faster with many workers and "
        "small items. Batches are the same",
    )
    cache: Size = Field(
        "2GB", description="memory limit of the cache of decoded or preprocessed items, which later epochs reuse; 0: no cache"
    )
    batches: BatchesBlock = Field(
        RandomBatches(),
        description="which rows form a batch: a batch plan (random, spread, groups, balanced, one_source, buckets) or its options; "
        "{groups: P, rows: K}: batches of P groups x K rows",
    )

    skip_bad: bool = Field(
        False, description="true: skip values that cannot be decoded, with a warning; false: stop the run at the first one"
    )

    @property
    def training_sets(self) -> list[TrainingSet]:
        """`train` as a list of weighted training sets."""
        entries = self.train if isinstance(self.train, list) else [self.train]
        return [e if isinstance(e, TrainingSet) else TrainingSet(path=e) for e in entries]

    @property
    def negatives_files(self) -> list[str]:
        """The files that `negatives` names."""
        if isinstance(self.negatives, bool):
            return []
        return [self.negatives] if isinstance(self.negatives, str) else self.negatives

    @property
    def cache_bytes(self) -> int:
        """`cache` in bytes."""
        return parse_size(self.cache, minimum=0)

    @property
    def cache_size_bytes(self) -> int:
        """`cache_size` in bytes."""
        return parse_size(self.cache_size, minimum=0)

    @field_validator("train")
    @classmethod
    def _not_empty(cls, value: str | list[str | TrainingSet]) -> str | list[str | TrainingSet]:
        if not value:
            raise invalid("is empty; name your packed training data: data.train=DIR")
        return value
