"""The public functions that make pairs of catalogs, labels, duplicates, recordings and language models, and splits of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.pairs.generated_pairs import GenerateOptions
    from mmtune.pairs.pairs_result import PairsResult


def pairs_from_catalog(
    source: str | Path,
    out: str | Path,
    *,
    id: str,
    media: Mapping[str, str | Sequence[str]],
    captions: Sequence[str] = (),
    sentences: Sequence[str] = (),
    group: str | None = None,
    join: Sequence[str | Path] = (),
    combine: str = "each",
    separator: str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Make a table of pictures (or other media) and captions from a product catalog or feed.

    Writes pairs.parquet (id, group, media, caption, and all other columns) and dropped.json into `out`; `pack` takes the table as it is.
    Rows with one id are one product.

    source: CSV, TSV, JSONL, Parquet or Google Merchant feed (XML, or text with tabs), or a folder of tables
    out: directory to write
    id: column with the ids of products
    media: {modality: column or columns} with paths or URLs; a cell may be a list
    captions: templates such as "{brand} {title}, {color}"; a missing attribute leaves with its punctuation
    sentences: columns whose sentences are captions, too
    group: column with groups; by default a product is a group
    join: tables with further media, a row each, with the same column of ids
    combine: "each": every file and every caption is in at least one row; "all": a row for each combination
    separator: what separates several paths in one cell
    overwrite: write `out` again
    quiet: show no progress

    Raises DataError if the source or a column cannot be used, or if no product is left.
    """
    from mmtune.pairs.product_catalog import pairs_from_catalog as pairs_from_catalog_

    return pairs_from_catalog_(
        source,
        out,
        id=id,
        media=media,
        captions=captions,
        sentences=sentences,
        group=group,
        join=join,
        combine=combine,
        separator=separator,
        overwrite=overwrite,
        quiet=quiet,
    )


def pairs_from_labels(
    source: str | Path,
    out: str | Path,
    *,
    levels: Sequence[str] = (),
    taxonomy: str | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    caption: str | None = None,
    negatives: int = 8,
    judgments_per_grade: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Make groups, graded judgments and hard negatives from labels of several levels.

    Writes pairs.parquet (rows whose group is their finest label), judgments.jsonl (grade: number of common levels, for
    `evaluate(qrels=...)`) and negatives.parquet (siblings, for the recipe key `data.negatives`) into `out`.

    source: what `pack` takes
    out: directory to write
    levels: columns of the labels, the coarsest first
    taxonomy: column with paths such as "Shoes > Boots", or "folders" for the folders of the files; its levels come before `levels`
    columns, id: as in `pack`
    caption: template of the captions; by default the column of captions, else the finest label
    negatives: siblings of each row
    judgments_per_grade: judge at most this many items of each grade for a query; 0 means all
    overwrite, quiet: as in `pairs_from_catalog`

    Raises DataError if the source or a column cannot be used, or if no row has a label.
    """
    from mmtune.pairs.label_pairs import pairs_from_labels as pairs_from_labels_

    return pairs_from_labels_(
        source,
        out,
        levels=levels,
        taxonomy=taxonomy,
        columns=columns,
        id=id,
        caption=caption,
        negatives=negatives,
        judgments_per_grade=judgments_per_grade,
        overwrite=overwrite,
        quiet=quiet,
    )


def group_duplicates(
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    action: str = "group",
    by: Sequence[str] = (),
    against: Sequence[str | Path] = (),
    threshold: float = 0.8,
    distance: int | None = None,
    workers: int = 2,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Find duplicates and near-duplicates: put them into groups, or drop them, and drop rows that other splits have.

    Compared are bytes, perceptual hashes of pictures and sounds, and MinHashes of texts. Writes pairs.parquet and duplicates.jsonl,
    which `pack(drop=...)` takes, into `out`. Rows of different given groups are never joined, but listed as contradictions.

    source: what `pack` takes
    out: directory to write
    columns, id, group: as in `pack`
    action: "group": duplicates without a group get one; "drop": a row whose values all repeat an earlier row is left out
    by: modalities by which rows are compared; by default all but texts, or texts if there is nothing else
    against: other splits; rows that are also there are dropped
    threshold: share of common runs of three words from which texts are near-duplicates; 1 means equal words
    distance: bits in which perceptual hashes may differ; None means that of the modality, -1 compares bytes only
    workers: threads that read files
    overwrite, quiet: as in `pairs_from_catalog`
    """
    from mmtune.pairs.duplicate_rows import group_duplicates as group_duplicates_

    return group_duplicates_(
        source,
        out,
        columns=columns,
        id=id,
        group=group,
        action=action,
        by=by,
        against=against,
        threshold=threshold,
        distance=distance,
        workers=workers,
        overwrite=overwrite,
        quiet=quiet,
    )


def pairs_from_segments(
    source: str | Path,
    out: str | Path,
    *,
    annotations: Sequence[str | Path] = (),
    recording: str | None = None,
    caption: str = "{label}",
    group: str | None = None,
    detect: str | None = None,
    threshold_db: float = 12.0,
    gap: float = 0.2,
    pad: float = 0.0,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    split: Sequence[str] = (),
    split_by: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Cut long recordings into clips with captions, by annotation files or by detection.

    Annotations of NAME.wav are NAME.txt (Audacity), NAME.selections.txt (Raven) or NAME.csv beside it, or the tables `annotations`.
    Writes clips/, pairs.parquet and dropped.json into `out`.

    source: a recording, a folder of recordings, or a table with a row for each
    out: directory to write
    annotations: tables with a row for each segment: file, start, end (or duration) in seconds, and further columns
    recording: column of the files, if `source` is a table
    caption: template of the captions over the columns of the annotations and of `source`
    group: column with groups, e.g. "label"
    detect: "energy" or "onset" for recordings without annotations; None leaves them out
    threshold_db: for "energy": level above the noise, in dB
    gap: join detected segments with shorter pauses, in seconds
    pad: seconds that are added before and after a segment
    min_seconds, max_seconds: shorter segments are dropped, longer ones cut into equal pieces
    split: shares such as ["train=0.8", "val=0.2"] for a column `split`; no recording is in two splits
    split_by: column that is never in two splits, e.g. "machine"
    seed: another number gives other splits
    overwrite, quiet: as in `pairs_from_catalog`
    """
    from mmtune.pairs.recording_segments import pairs_from_segments as pairs_from_segments_

    return pairs_from_segments_(
        source,
        out,
        annotations=annotations,
        recording=recording,
        caption=caption,
        group=group,
        detect=detect,
        threshold_db=threshold_db,
        gap=gap,
        pad=pad,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        split=split,
        split_by=split_by,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
    )


def generate_pairs(
    source: str | Path,
    out: str | Path,
    options: GenerateOptions | Mapping[str, object],
    *,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Generate captions or search queries for items with a language model behind an OpenAI-compatible endpoint.

    Answers are cached on disk by the content of their request. The key comes from an environment variable and is never written. A
    query is kept only if the model `base` ranks its item among the first `top`. Writes pairs.parquet (a row for each text, in the
    group of its item) and dropped.json into `out`; `measures` of the result has the estimate and what was used.

    source: what `pack` takes
    out: directory to write
    options: `endpoint` (base URL) and `model`, and further fields of `mmtune.pairs.generated_pairs.GenerateOptions`: task, prompt,
        about, see, per_item, base, top, price_prompt, price_completion, budget, ...
    columns, id, group: as in `pack`
    dry_run: return the estimate, send and write nothing
    overwrite, quiet: as in `pairs_from_catalog`

    Raises DataError if an option or the source cannot be used, if the endpoint refuses or is down, or if nothing is kept.
    """
    from mmtune.pairs.generated_pairs import generate_pairs as generate_pairs_

    return generate_pairs_(
        source, out, options, columns=columns, id=id, group=group, dry_run=dry_run, overwrite=overwrite, quiet=quiet
    )


def split_pairs(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    splits: Sequence[str] = ("train=0.8", "val=0.1", "test=0.1"),
    by: Sequence[str] = (),
    stratify: str | None = None,
    time: str | None = None,
    cuts: Sequence[str | float] = (),
    keep: str | Path | None = None,
    seed: int = 0,
    licences: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Mix sources into one table with splits, provenance and licences, and write a data card.

    By default the split of a group is a hash of its name, so a row keeps its split while the corpus grows. Writes pairs.parquet with
    the columns `split`, `source` and `licence` (`pack(..., split="split")` makes a directory for each split), card.md and card.json.

    sources: tables, folders, or directories that a function of this module wrote
    out: directory to write
    splits: shares such as ["train=0.9", "val=0.1"], in the order of time if `time` is given
    by: columns, such as recording or machine, whose values are never in two splits; a group never is
    stratify: column whose values get the shares, each for itself
    time: column with times; earlier rows go to earlier splits, a group to the split of its latest row
    cuts: times at which the second, third ... split begin
    keep: an earlier output, whose rows keep their splits; for `stratify`
    seed: another number gives other splits
    licences: {name of a source, or "" for all: licence of its rows that state none}
    columns, id, group: as in `pack`
    overwrite, quiet: as in `pairs_from_catalog`
    """
    from mmtune.pairs.corpus_split import split_pairs as split_pairs_

    return split_pairs_(
        sources,
        out,
        splits=splits,
        by=by,
        stratify=stratify,
        time=time,
        cuts=cuts,
        keep=keep,
        seed=seed,
        licences=licences,
        columns=columns,
        id=id,
        group=group,
        overwrite=overwrite,
        quiet=quiet,
    )
