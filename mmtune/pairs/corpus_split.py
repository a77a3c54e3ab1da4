"""Mix sources into one corpus with splits and a data card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.identity_labels import identity_string
from mmtune.data.pack.columns import PackRow, named_column, nested_cell
from mmtune.data.pack.pair_rows import digests_of_equal_sizes
from mmtune.errors import DataError
from mmtune.pairs.data_card import LICENCE_COLUMNS, CardCounts, card_markdown
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.hash_split import parse_shares, warn_empty
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.pairs.row_splits import SplitRow, parse_time, split_by_hash, split_by_strata, split_by_time, units_of
from mmtune.pairs.source_rows import SourceRows
from mmtune.runtime.files import read_json, write_json, write_text
from mmtune.runtime.progress import Progress

TAKEN = ("source", "split", "licence")
PAIRS = "pairs.parquet"


@dataclass(frozen=True)
class SplitOptions:
    """How rows are divided.

    shares: {split: share}, in the order of time if `time` is given
    by: columns whose values are never in two splits, beside the group
    stratify: column whose values have the same shares in all splits
    time: column with the time of a row; earlier rows go to earlier splits
    cuts: times at which the second, third ... split begin
    keep: an earlier output, whose rows keep their splits
    seed: another number gives other splits
    """

    shares: Mapping[str, float]
    by: tuple[str, ...] = ()
    stratify: str | None = None
    time: str | None = None
    cuts: tuple[float, ...] = ()
    keep: str | None = None
    seed: int = 0

    def document(self) -> JsonObject:
        """The options for the data card and pairs.json."""
        named: JsonObject = {
            "shares": dict(self.shares),
            "by": ["group", *self.by],
            "stratified by": self.stratify,
            "by time": self.time,
        }
        return {**named, "cuts": list(self.cuts), "kept from": self.keep and Path(self.keep).name, "seed": self.seed}


@dataclass
class Source:
    """An opened source of the corpus.

    name: what the column `source` says
    licence: licence of rows that state none
    licence_column: column with the licences of its rows, or None
    """

    path: Path
    name: str
    rows: SourceRows
    licence: str | None
    licence_column: str | None

    def licence_of(self, row: PackRow) -> str | None:
        """The licence of a row."""
        own = identity_string(row.meta.get(self.licence_column)) if self.licence_column else None
        return own or self.licence

    def column(self, row: PackRow, column: str) -> str | None:
        """The value of a column of a row as a string: of its metadata, or its group."""
        return row.group if column == self.rows.roles.group else identity_string(nested_cell(row.meta, column))

    def card(self, identity: JsonObject) -> JsonObject:
        """Its entry in the data card: name, hash, and how `mmtune pairs` made it, if it did."""
        made = self.path.parent / "pairs.json" if self.path.name == PAIRS else self.path / "pairs.json"
        history: JsonObject = {}
        if made.is_file():
            document = read_json(made)
            history = {"made by": f"mmtune pairs {document['result']['kind']}", "dropped": document["result"]["dropped"]}
        return {"name": self.name, "sha256": identity["sha256"], **history}


def open_sources(
    paths: Sequence[str | Path],
    licences: Mapping[str, str],
    columns: Mapping[str, str] | None,
    id: str | None,
    group: str | None,
) -> list[Source]:
    """Open all sources. Raises DataError if one cannot be read, has a column `split`, or if `licences` names no source."""
    found: list[Source] = []
    for given in paths:
        path = Path(given)
        path = path / PAIRS if (path / PAIRS).is_file() else path
        name = path.parent.name if path.name == PAIRS else path.stem if path.is_file() else path.name
        while any(s.name == name for s in found):
            name += "+"
        rows = SourceRows(path, columns, id, group, TAKEN)
        if "split" in rows.source.columns:
            raise DataError(
                f"{path}: has a column 'split' already, which `mmtune pack --split split` uses; rename it to make new splits"
            )
        lower = {c.lower(): c for c in rows.roles.meta}
        licence_column = next((lower[n] for n in LICENCE_COLUMNS if n in lower), None)
        found.append(Source(path, name, rows, licences.get(name, licences.get("")), licence_column))
    for name in licences:
        if name and name not in {s.name for s in found}:
            raise DataError(f"--licence {name}=...: no source of this name; there are: {', '.join(s.name for s in found)}")
    return found


def _types(sources: Sequence[Source]) -> dict[str, pa.DataType]:
    """The columns of the corpus. One that has different types in two sources gets floats for numbers, else strings."""
    types: dict[str, pa.DataType] = {"id": pa.string(), "group": pa.string()}
    types |= {name: pa.string() for s in sources for name in s.rows.roles.modalities}
    types |= dict.fromkeys(TAKEN, pa.string())
    for s in sources:
        for name, kind in s.rows.types.items():
            before = types.setdefault(name, kind)
            if before != kind:
                numbers = {before, kind} <= {pa.int64(), pa.float64()}
                types[name] = pa.float64() if numbers else pa.string()
    return types


@dataclass
class _Corpus:
    """What was read of all sources: for each row what its split depends on, and its new id."""

    rows: list[SplitRow] = field(default_factory=list)
    skipped: set[tuple[int, str]] = field(default_factory=set)
    renamed: int = 0
    read: int = 0


def _read(
    sources: Sequence[Source], options: SplitOptions, kept: Mapping[str, str], drops: DropCounts, progress: Progress
) -> _Corpus:
    """Read what the splits depend on. Rows without a time, where it is needed, are counted as dropped."""
    corpus, ids = _Corpus(), set[str]()
    for number, source in enumerate(sources):
        for column in filter(None, (*options.by, options.stratify, options.time)):
            if column not in (source.rows.roles.group, source.rows.roles.id):
                named_column(source.rows.source, column, "by, --stratify, --time")
        for row in source.rows.rows(drops):
            progress.advance(1)
            time = parse_time(nested_cell(row.meta, options.time)) if options.time else None
            if options.time and time is None:
                drops.add(f"no time: {options.time} is neither a number nor an ISO date", row.id)
                corpus.skipped.add((number, row.id))
                continue
            id = row.id
            while id in ids:
                id = f"{source.name}/{id}"
            corpus.renamed += id != row.id
            ids.add(id)
            keys = [(c, value) for c in options.by if (value := source.column(row, c)) is not None]
            # a row without a group is a group of its own, of the name that generated pairs give it
            keys.append(("group", row.group or row.id))
            stratum = (source.column(row, options.stratify) or "") if options.stratify else ""
            corpus.rows.append(SplitRow(id, tuple(keys), stratum, time, kept.get(id)))
        corpus.read += source.rows.read
    return corpus


def _kept(keep: str | None) -> dict[str, str]:
    """{id: split} of an earlier output. Raises DataError if it has no such columns."""
    if keep is None:
        return {}
    path = Path(keep) / PAIRS if Path(keep).is_dir() else Path(keep)
    try:
        table = pq.read_table(path, columns=["id", "split"])
    except Exception as e:  # a missing file, missing columns, a damaged file: pyarrow raises almost anything
        raise DataError(
            f"{path}: no pairs.parquet with the columns id and split (--keep): {str(e).partition(chr(10))[0]}"
        ) from None
    return {i: s for i, s in zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True) if i and s}


def decide_splits(rows: Sequence[SplitRow], options: SplitOptions) -> tuple[list[str], JsonObject]:
    """The split of each row, and what is to be said about it: number of units, of units that were in several splits, and the cuts."""
    units, names = units_of(rows)
    kept: dict[int, str] = {}
    torn: set[int] = set()
    for row, unit in sorted(zip(rows, units.tolist(), strict=True), key=lambda pair: pair[0].id):
        if row.kept is not None and kept.setdefault(unit, row.kept) != row.kept:
            torn.add(unit)
    unknown = sorted(set(kept.values()) - set(options.shares))
    if unknown:
        raise DataError(f"--keep: its rows are in {', '.join(unknown)}, which is not in --split; name the same splits")
    said: JsonObject = {"units": len(names), "units that were in several splits": len(torn)}
    if options.time:
        of_unit, cuts = split_by_time(rows, units, names, options.shares, options.cuts)
        said["cuts"] = cuts
    elif options.stratify:
        of_unit = split_by_strata(rows, units, names, options.shares, options.seed, kept)
    else:
        hashed = split_by_hash(names, options.shares, options.seed)
        of_unit = [kept.get(unit, split) for unit, split in enumerate(hashed)]
    return [of_unit[unit] for unit in units.tolist()], said


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
    """Mix sources into one table with splits and a data card; see `mmtune.split_pairs`."""
    options = _options(splits, by, stratify, time, cuts, keep, seed)
    kept = _kept(options.keep)
    opened = open_sources(sources, licences or {}, columns, id, group)
    identities = [source_identity(s.path) for s in opened]
    arguments = {
        **options.document(),
        "columns": [s.rows.roles.by_role() for s in opened],
        "licences": dict(licences or {}),
        "kept": source_identity(keep) if keep is not None else None,
    }
    with PairsWriter(out, "split", arguments, identities, columns=_types(opened), base=False, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        with Progress("read", sum(s.rows.source.total for s in opened), quiet=quiet) as progress:
            corpus = _read(opened, options, kept, writer.drops, progress)
        if not corpus.rows:
            raise DataError(f"{', '.join(map(str, sources))}: no row to split")
        of_row, said = decide_splits(corpus.rows, options)
        counts = _write(writer, opened, corpus, of_row, options)
        if not counts.rows:
            raise DataError(f"{', '.join(map(str, sources))}: no row is left ({writer.drops.reasons()})")
        warn_empty(counts.rows, options.shares, said["units"], "group")
        cards = [s.card(identity) for s, identity in zip(opened, identities, strict=True)]
        card = counts.document(list(options.shares), cards, writer.drops.to_list(), {**options.document(), **said})
        write_json(writer.files / "card.json", card)
        write_text(writer.files / "card.md", card_markdown(card))
        groups = {
            "groups": {s: card["splits"][s]["groups"] for s in counts.rows},
            "distinct groups": len(set().union(*counts.groups.values())),
        }
        measures = {"splits": dict(counts.rows), **groups, **said, "ids renamed": corpus.renamed}
        between = {k: card[k] for k in ("groups in several splits", "contents in several splits")}
        return writer.publish(corpus.read, {**measures, **between})


def _options(
    splits: Sequence[str],
    by: Sequence[str],
    stratify: str | None,
    time: str | None,
    cuts: Sequence[str | float],
    keep: str | Path | None,
    seed: int,
) -> SplitOptions:
    shares = parse_shares(splits)
    times = [parse_time(cut) for cut in cuts]
    if None in times or times != sorted(t for t in times if t is not None):
        raise DataError(f"--cut {', '.join(map(str, cuts))}: give dates (ISO 8601) or numbers, the earliest first")
    if times and (time is None or len(times) != len(shares) - 1):
        raise DataError(f"--cut: needs --time, and one time for each split but the first ({len(shares) - 1})")
    if time is not None and (stratify is not None or keep is not None):
        raise DataError(
            "--time cannot be combined with --stratify or --keep; give --cut, so that a growing corpus keeps its splits"
        )
    return SplitOptions(
        shares,
        tuple(by),
        stratify,
        time,
        tuple(t for t in times if t is not None),
        str(keep) if keep is not None else None,
        seed,
    )


def _digests(sources: Sequence[Source], names: Sequence[str]) -> dict[str, bytes]:
    """Digest of each file of the modalities `names` whose size equals that of another; all other files differ from each other."""
    paths = {
        value
        for source in sources
        for row in source.rows.rows(DropCounts())
        for name in names
        if isinstance(value := row.values.get(name), str) and "://" not in value
    }
    return digests_of_equal_sizes(paths)


def _write(
    writer: PairsWriter, sources: Sequence[Source], corpus: _Corpus, of_row: Sequence[str], options: SplitOptions
) -> CardCounts:
    """Write all rows, and count them for the card."""
    counts = CardCounts()
    compared = modalities.non_language(list(dict.fromkeys(n for s in sources for n in s.rows.roles.modalities)))
    by_path = _digests(sources, compared)
    types = {f.name: f.type for f in writer.schema}
    decided = iter(zip(corpus.rows, of_row, strict=True))
    for number, source in enumerate(sources):
        media = source.rows.media(writer.out, writer.files, writer.drops)
        for row in source.rows.rows(DropCounts()):
            if (number, row.id) in corpus.skipped:
                continue
            split_row, split = next(decided)
            cells = source.rows.cells(row, media)
            if cells is None:
                continue
            licence = source.licence_of(row)
            own = {"id": split_row.id, "source": source.name, "split": split, "licence": licence}
            writer.add_row(**{name: _as_type(value, types[name]) for name, value in {**cells, **own}.items() if name in types})
            digests = [d for name in compared if (d := _digest(row.values.get(name), by_path))]
            stratum = split_row.stratum if options.stratify else ""
            counts.add(split, row.group, list(row.values), source.name, licence, stratum, digests)
    return counts


def _as_type(value: object, kind: pa.DataType) -> object:
    return str(value) if value is not None and kind == pa.string() and not isinstance(value, str) else value


def _digest(value: bytes | str | None, by_path: Mapping[str, bytes]) -> str:
    """What tells the content of a value from others; "" if it is not known to be equal to another."""
    if isinstance(value, bytes):
        return blake2b(value, digest_size=16).hexdigest()
    return by_path[str(Path(value))].hex() if value is not None and str(Path(value)) in by_path else ""
