"""Public functions for preparing data and training models: pack, open_data, mine, soup, sweep, bench, bench_quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmtune.runtime.openmp_policy import set_openmp_wait_policy

if TYPE_CHECKING:
    from mmtune.benchmark.quality_result import QualityResult
    from mmtune.benchmark.throughput import Throughput
    from mmtune.contracts import JsonObject, Scorer
    from mmtune.data.in_memory import DataLike
    from mmtune.data.pack.pack import PackResult, ProgressCallback
    from mmtune.data.shards.dataset import Data
    from mmtune.data.sources.memory_rows import InMemory
    from mmtune.mining.mining_result import MiningResult
    from mmtune.model.dual_encoder import Model
    from mmtune.recipe.mining_block import MiningOptions
    from mmtune.recipe.recipe import Recipe
    from mmtune.runtime.ray_cluster import Engine
    from mmtune.sweeps.sweep_result import SweepResult
    from mmtune.training.regularise.soup import SoupResult


def pack(
    source: str | Path | InMemory,
    out: str | Path,
    *,
    columns: dict[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    split: str | None = None,
    query: str | None = None,
    positive: str | None = None,
    negatives: Sequence[str] = (),
    score: str | None = None,
    shard_size: str | int = "256MB",
    workers: int = 0,
    max_rejected: float = 0.05,
    options: JsonObject | None = None,
    max_bytes: str | int = "512MB",
    timeout: float = 60.0,
    overwrite: bool = False,
    drop: str | Path | None = None,
    engine: Engine = "here",
    progress: ProgressCallback | None = None,
) -> PackResult:
    """Check a source of samples and pack them into WebDataset shards.

    A row that cannot be used is rejected and listed in rejected.jsonl with the reason. After an interruption, call the function
    again with the same arguments: it resumes. If the pack is complete, a further call checks that the source has not changed.

    source: a table (CSV, Parquet, ...), a folder of media files, another supported source, or rows in memory (see `open_data`)
    out: output directory; with `split`, each split gets the subdirectory `out/VALUE`
    columns: modality -> column of the source; "" leaves the modality out; modalities that are not named here are taken from
        columns with usual names
    id: column with the row ids; None means a column named "id", else ids are made from file paths or row numbers
    group: column with the group of each row; None means a column named "group", if there is one
    split: column with the split of each row, e.g. train or test
    query, positive: columns of a query (anchor) and its positive, each "COLUMN" or "COLUMN:MODALITY"; without any of these options,
        columns called anchor or query, positive, and negative are recognised
    negatives: columns of negatives, each "COLUMN" or "COLUMN:MODALITY"; they are written to negatives.parquet beside the shards
    score: column with the score of each row's pair; scores are also written to judgments.jsonl, for `evaluate(qrels=...)`
    shard_size: maximum size of a shard, e.g. "256MB"; a single row that is larger gets a shard of its own
    workers: number of worker processes that check files; at least one is always used, so that a file that crashes its decoder
        does not end the pack; 0 with engine="ray" means one per core of the cluster
    max_rejected: maximum fraction of rejected rows
    options: limits of the modalities, e.g. {"max_pixels": 100000000}
    max_bytes: maximum size of one file
    timeout: seconds after which a file is rejected because checking it takes too long
    overwrite: delete an existing pack in `out` that was made with other arguments
    drop: a file with rows to leave out, as `mmtune doctor --out` writes it, or with one id a line
    engine: "ray" checks the files on the Ray cluster of RAY_ADDRESS, or on one that is started on this machine; this process writes
    progress: function (rows done, packed, rejected, total) that is called after every row; the total is an estimate

    Returns counts, reasons of rejection and paths. Raises DataError if the source or `out` cannot be used. Also raises DataError
    if more than the fraction `max_rejected` of the rows was rejected; the shards are complete in this case.
    """
    from mmtune.data.pack.pack import pack as pack_

    return pack_(
        source,
        out,
        columns=columns,
        id=id,
        group=group,
        split=split,
        query=query,
        positive=positive,
        negatives=negatives,
        score=score,
        shard_size=shard_size,
        workers=workers,
        max_rejected=max_rejected,
        options=options,
        max_bytes=max_bytes,
        timeout=timeout,
        overwrite=overwrite,
        drop=drop,
        engine=engine,
        progress=progress,
    )


def open_data(
    spec: DataLike, *, columns: Mapping[str, str] | None = None, id: str | None = None, group: str | None = None
) -> Data:
    """Open packed data, other WebDataset shards, or rows in memory.

    spec: a directory of .tar files, a .tar file, a brace or glob pattern, an fsspec URL of one of these, or a list of them; also the
        directory of a Hugging Face dataset (`save_to_disk`, or Parquet files), which is packed into the cache first;
        or rows in memory: a list of dicts, a dict of lists, a pandas DataFrame, a pyarrow Table or a `datasets.Dataset`, whose cells
        may be paths, bytes, PIL images, arrays, pairs (samples, sample rate), or dictionaries of Hugging Face datasets. They are
        packed once, into a directory of the cache ($MMTUNE_CACHE or ~/.cache/mmtune) that is named by their content
    columns: for rows in memory: modality -> column; columns with usual names are found
    id, group: for rows in memory: columns with the ids and groups of the rows

    Raises DataError, which names the file, if a shard is missing, compressed, truncated or not a tar file, if it differs from
    index.json, if an id occurs twice, or if more than 5% of the rows in memory cannot be used.
    """
    from mmtune.data.in_memory import as_opened

    return as_opened(spec, columns=columns, id=id, group=group)


def mine(
    model: Model | str | Path,
    data: DataLike,
    out: str | Path,
    options: MiningOptions | Mapping[str, object] | None = None,
    *,
    verifier: Scorer | str | None = None,
    truth: str | None = None,
    batch_size: int = 64,
    vectors: str | Path | None = None,
    cache: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    quiet: bool = False,
    skip_bad: bool = False,
    engine: Engine = "here",
    workers: int | None = None,
    read: Literal["index", "stream"] | None = None,
) -> MiningResult:
    """Mine hard negatives: embed the data with the model, search candidates in every direction, and drop false negatives.

    Writes a table of negatives and, next to it, an audit that reports which candidates were dropped and why. When started with
    torchrun, each process embeds a part of the data; rank 0 searches and writes the files.

    model: a `Model`, or what `mmtune.load` accepts
    data: what `mmtune.open_data` accepts, or opened data
    columns, id, group: for rows in memory, as in `mmtune.open_data`
    out: Parquet file to write
    options: options of the recipe block `mining`
    verifier: an object with score(pairs), "package.module:Class" or a MODEL, which re-scores candidates to drop false negatives
    truth: metadata column with the true group of every row; used to measure the guards if the groups of the data are incomplete
    batch_size: batch size for encoding
    vectors: directory that `mmtune.embed` wrote for this model and data; its vectors are mapped from disk, nothing is embedded
    cache: directory in which perceptual hashes of the data are cached
    quiet: show no progress
    skip_bad: leave out values that cannot be decoded, with a DataWarning; by default the first one is a DataError
    engine: "ray" embeds on the Ray cluster of RAY_ADDRESS, or on one that is started on this machine; this process searches and writes
    workers: number of Ray workers; None means one per GPU, or one per CPU core if there is no GPU
    read: "stream" lists, hashes and embeds the rows while the shards of `data` are read from start to end, once, and keeps no copies of
        shards, for data larger than the disk; the audit then shows ids alone, and a verifier and the source `lexical` are refused. "index"
        reads with random access. None: index, for pipe:COMMAND stream

    Raises MmtuneError if the options, the model or the data are invalid.
    """
    set_openmp_wait_policy()
    if columns or id or group:
        from mmtune.data.in_memory import as_opened

        data = as_opened(data, columns=columns, id=id, group=group)
    from mmtune.mining.mine_model import mine as mine_

    return mine_(
        model,
        data,
        out,
        options,
        verifier=verifier,
        truth=truth,
        batch_size=batch_size,
        vectors=vectors,
        cache=cache,
        quiet=quiet,
        skip_bad=skip_bad,
        engine=engine,
        workers=workers,
        read=read,
    )


def sweep(
    recipe: Recipe | Mapping[str, object] | str | Path,
    space: Mapping[str, object] | Sequence[str],
    out: str | Path,
    *,
    trials: int = 20,
    timeout: float | None = None,
    gate: str | None = None,
    seed: int = 0,
    prune: bool = True,
    quiet: bool = False,
) -> SweepResult:
    """Search for the best values of recipe keys: one training run a trial, chosen by Optuna, judged by `train.metric` on data.val.

    After an interruption the same call continues: finished trials count, and the running one continues from its last checkpoint.

    recipe: a recipe file, a mapping with the same keys, or a `Recipe`; it needs data.val
    space: {recipe key: list of choices, or "[LOW..HIGH]" or "[LOW..HIGH log]"}, or strings "KEY=VALUES" as on the command line
    out: directory of the study, the trials, sweep.json and sweep.html
    trials: number of trials in all, those of earlier calls included
    timeout: seconds after which no further trial starts
    gate: a third split, on which the best model is compared with the base by the recipe's gate
    seed: seed of the sampler
    prune: whether to stop trials that are worse than the median of the earlier ones at the same point of training
    quiet: print no progress

    Raises RecipeError for a mistake in recipe or space, and TrainingError if no trial was trained to its end.
    """
    set_openmp_wait_policy()
    from mmtune.sweeps.run_sweep import sweep as sweep_

    return sweep_(recipe, space, out, trials=trials, timeout=timeout, gate=gate, seed=seed, prune=prune, quiet=quiet)


def soup(
    models: Sequence[str | Path],
    data: Data | str,
    out: str | Path,
    *,
    how: str = "greedy",
    metric: str = "map",
    batch_size: int = 64,
    quiet: bool = True,
) -> SoupResult:
    """Average the weights of several models (model soup) and save the result as an artifact.

    models: artifacts or MODEL strings, tuned from the same base model
    data: validation data that none of the models was trained on
    out: artifact directory to write
    how: "uniform" averages all models. "greedy" starts with the best model and goes through the others from best to worst; a
        model is added if the average does not get worse
    metric: retrieval metric for "greedy", averaged over the directions between modalities
    batch_size: batch size for encoding
    quiet: show no progress

    Raises MmtuneError if the models cannot be averaged or the data cannot be used.
    """
    set_openmp_wait_policy()
    from mmtune.training.regularise.soup import soup as soup_

    return soup_(models, data, out, how=how, metric=metric, batch_size=batch_size, quiet=quiet)


def bench(
    recipe: Recipe | Mapping[str, object] | str | Path, overrides: Sequence[str] = (), *, steps: int = 16, quiet: bool = True
) -> Throughput:
    """Measure the throughput of a recipe on this machine.

    Trains a few steps in a temporary directory, then loads batches without a model, and embeds up to 512 rows. The cache of
    decoded items is off, so every step is as slow as in a first epoch. Validation, mining, interpolation and the head_first stage
    are left out.

    recipe, overrides: as in `mmtune.train`
    steps: number of measured training steps, after 4 warm-up steps
    quiet: print no progress

    Raises RecipeError if `steps` is below 1, or if several processes were started with torchrun.
    """
    set_openmp_wait_policy()
    from mmtune.benchmark.throughput import bench as bench_

    return bench_(recipe, overrides, steps=steps, quiet=quiet)


def bench_quality(
    data: Mapping[str, str | Path],
    towers: Mapping[str, str],
    out: str | Path,
    *,
    seeds: int = 3,
    methods: Sequence[str] | None = None,
    shots: Sequence[int] = (),
    recipes: Mapping[str, str | Path] | None = None,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    quiet: bool = True,
) -> QualityResult:
    """Score ways of tuning the same pretrained towers on each set, and write OUT/quality.json and OUT/quality.md.

    data: {name: directory with the packed sets `train` and `val`}; the groups of the rows are the classes. Methods learn from
        `train` alone and are scored on `val`; candidates are the captions of both
    towers: {modality: MODEL}, a language tower and one for each other modality of the sets
    out: directory of the results; a later call with the same settings continues there
    seeds: number of runs, with the seeds 0, 1, ..., of each method whose result depends on the seed
    methods: "base" (heads as the recipe fits them, no training), "mmtune", "sentence-transformers" (as many pairs, the same parts of the
        towers trained), "linear probe", "nearest neighbours", "tip-adapter", "clip-adapter"; None: all
    shots: train on so many rows of each group, drawn with the seed; without it on all rows
    recipes: {name of a set: recipe file}; without an entry the recipe that `mmtune init --encoders` writes for its size
    overrides: "key=value" strings for all of these recipes
    cluster: metadata column of `val`, e.g. the recording, whose values the intervals of differences resample; None: a column called
        recording, if there is one, else single queries
    quiet: print no progress

    Returns scores, mean, standard deviation and 95% t-interval over the seeds, differences of mmtune to the other methods with intervals
    over queries and seeds, and seconds. Raises RecipeError for unknown
    methods or if OUT holds results of other settings, and DataError if a set cannot be used.
    """
    from mmtune.benchmark.quality_bench import METHODS
    from mmtune.benchmark.quality_bench import bench_quality as bench_quality_

    return bench_quality_(
        data,
        towers,
        out,
        seeds=seeds,
        methods=METHODS if methods is None else methods,
        shots=shots,
        recipes=recipes,
        overrides=overrides,
        cluster=cluster,
        quiet=quiet,
    )
