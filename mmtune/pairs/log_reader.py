"""Read a log (CSV, TSV, JSONL, Parquet; a file, a folder or a pattern of files, a URL) with DuckDB, and keep the rows that can be used."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, MissingExtra, first_line
from mmtune.pairs.drop_counts import MAX_EXAMPLES, DropCounts
from mmtune.pairs.log_options import LogColumns, LogSettings
from mmtune.runtime.files import sha256_file

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""Extension of a log -> how it is read. `.gz` and `.zst` behind it are allowed for text."""
HASHED_BYTES = 2**30
"""Logs up to this size are identified by a hash of their content, larger ones by size and time of change."""
TRUE_WORDS = ("true", "t", "yes", "y", "clicked")
FALSE_WORDS = ("false", "f", "no", "n", "")
EVENT_WORDS = {
    "impression": ("impression", "view", "show", "shown", "display", "search"),
    "clicked": ("click", "clicked"),
    "cart": ("cart", "add_to_cart", "addtocart", "add-to-cart", "basket"),
    "order": ("order", "ordered", "purchase", "buy", "transaction"),
}
"""Kind of event -> its usual names."""
REASONS = {
    1: "no query",
    2: "no item",
    3: "the position is no whole number",
    4: "the time cannot be read",
    5: "clicked, cart or order is neither yes nor no",
    6: "an unknown kind of event",
    7: "all columns are empty, or the line is not valid JSON",
}
"""Code in the column `bad` of the table `parsed` -> why the row cannot be used."""


def connect(path: Path, settings: LogSettings) -> DuckDBPyConnection:
    """Open the database of the intermediate tables. Raises MissingExtra without DuckDB."""
    try:
        import duckdb
    except ImportError:
        raise MissingExtra('pairs logs needs DuckDB: pip install "mmtune[pairs]"') from None
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.memory,
        "threads": settings.threads or min(8, os.cpu_count() or 1),
        "temp_directory": str(path.with_suffix(".tmp")),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    try:
        return duckdb.connect(str(path), config=config)
    except duckdb.Error as e:
        if "memory" in str(e).lower():
            raise DataError(f"--memory {settings.memory}: use a size such as 700MB or 4GB") from None
        raise DataError(f"{path}: {first_line(e)}") from None


def log_files(log: str | Path) -> list[str]:
    """The files of a log: one, or those of a folder or pattern. Raises DataError if there is none, or an unknown kind."""
    name = str(log)
    if "://" in name or Path(name).is_file():
        files = [name]
    elif Path(name).is_dir():
        files = sorted(str(p) for p in Path(name).rglob("*") if p.is_file() and _reader(str(p)))
    else:
        files = sorted(glob.glob(name, recursive=True))
    if not files:
        raise DataError(f"{log}: no such file, or a folder without .csv, .tsv, .jsonl or .parquet files")
    kinds = {_reader(f) for f in files}
    if None in kinds or len(kinds) > 1:
        raise DataError(f"{log}: not a kind of log; use .csv, .tsv, .jsonl or .parquet files, all of one kind")
    return files


def _reader(file: str) -> str | None:
    name = file.lower().removesuffix(".gz").removesuffix(".zst")
    return READERS.get(os.path.splitext(name)[1])


def log_identity(files: Sequence[str]) -> list[JsonObject]:
    """What identifies the content of the files, see `PairsWriter`."""
    out: list[JsonObject] = []
    for file in files:
        if "://" in file:
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(file)
            info = filesystem.info(path)
            out.append({"name": file, "bytes": info.get("size"), "changed": str(info.get("ETag") or info.get("mtime") or "")})
            continue
        stat = os.stat(file)
        content = {"sha256": sha256_file(file)} if stat.st_size <= HASHED_BYTES else {"changed": stat.st_mtime_ns}
        out.append({"name": os.path.basename(file), "bytes": stat.st_size, **content})
    return out


def parse_log(con: DuckDBPyConnection, files: list[str], columns: LogColumns, settings: LogSettings, drops: DropCounts) -> int:
    """Read the files into the table `parsed`, and count in `drops` what cannot be used.

    `parsed` has q, item (strings), pos (INTEGER), clicked, cart, ord (BOOLEAN), t (DOUBLE, seconds), who, person (UBIGINT hashes of
    the session or else the user, and of the user or else the session), list (UBIGINT, hash of the search id) and bad (see REASONS).

    Returns the number of rows of the log. Raises DataError if nothing can be read, or if a named column does not exist.
    """
    import duckdb

    if "://" in files[0]:
        import fsspec

        con.register_filesystem(fsspec.core.url_to_fs(files[0])[0])
    files = _whole_files(con, files, drops)
    source, kind = _source(files, settings), _reader(files[0])
    con.execute("DROP TABLE IF EXISTS parsed")
    try:
        types = {name: str(type) for name, type, *_ in con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
        _check_columns(files[0], columns, types)
        con.execute(f"CREATE TABLE parsed AS {_parse_sql(source, columns, settings, types)}")
    except duckdb.OutOfMemoryException as e:
        raise DataError(f"--memory {settings.memory}: too little for this log; allow more ({first_line(e)})") from None
    except duckdb.Error as e:
        raise DataError(f"{files[0]}: cannot be read ({first_line(e)})") from None
    rows = _count(con, "SELECT count(*) FROM parsed")
    rejected = _count_rejected(con, files, drops) if kind == "csv" else 0
    for code, n in con.execute("SELECT bad, count(*) FROM parsed WHERE bad > 0 GROUP BY 1 ORDER BY 1").fetchall():
        query = f"SELECT coalesce(q, '') || ' ' || coalesce(item, '') FROM parsed WHERE bad = {code} ORDER BY 1 LIMIT {MAX_EXAMPLES}"
        examples = [e for (e,) in con.execute(query).fetchall()]
        drops.add(REASONS[code], count=n)
        for example in examples:
            drops.add_example(REASONS[code], example)
    good = _count(con, "SELECT count(*) FROM parsed WHERE bad = 0")
    if not good:
        raise DataError(f"{files[0]}: no row can be used: {_reasons(drops)}")
    return rows + rejected


def _reasons(drops: DropCounts) -> str:
    parts = [f"{d['count']:,} x {d['reason']}" for d in drops.to_list()[:3]]
    return "; ".join(parts) or "it has no rows"


def _count(con: DuckDBPyConnection, sql: str) -> int:
    row = con.execute(sql).fetchone()
    return int(row[0]) if row else 0


def _whole_files(con: DuckDBPyConnection, files: list[str], drops: DropCounts) -> list[str]:
    """The files that are not cut off: a Parquet file that was written only in part has no footer."""
    if _reader(files[0]) != "parquet":
        return files
    import duckdb

    whole, error = [], ""
    for file in files:
        try:
            con.execute(f"SELECT count(*) FROM parquet_file_metadata({_quoted(file)})")
            whole.append(file)
        except (duckdb.Error, OSError) as e:
            error = first_line(e)
            drops.add("not a whole Parquet file", os.path.basename(file), unit="files")
    if not whole:
        raise DataError(f"{files[0]}: not a whole Parquet file; was it written only in part? ({error})")
    return whole


def _source(files: list[str], settings: LogSettings) -> str:
    names, kind = f"[{_words(files)}]", _reader(files[0])
    if kind == "parquet":
        return f"read_parquet({names}, union_by_name=true)"
    if kind == "json":
        return f"read_json({names}, format='newline_delimited', ignore_errors=true, union_by_name=true)"
    delimiter = ", delim='\t'" if ".tsv" in files[0].lower() else ""
    encoding = settings.encoding or _encoding(files[0])
    options = f"all_varchar=true, header=true, store_rejects=true, rejects_limit=0, encoding={_quoted(encoding)}{delimiter}"
    selects = [f"SELECT * FROM read_csv({_quoted(file)}, {options})" for file in files]
    return f"({' UNION ALL BY NAME '.join(selects)})"


def _encoding(file: str) -> str:
    if "://" in file or file.lower().endswith((".gz", ".zst")):
        return "utf-8"
    with open(file, "rb") as f:
        start = f.read(2)
    return "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _check_columns(file: str, columns: LogColumns, types: dict[str, str]) -> None:
    for role, column in columns.named().items():
        if column not in types:
            raise DataError(f"{file}: no column {column!r} (--{role}); it has {', '.join(list(types)[:20])}")


def _parse_sql(source: str, columns: LogColumns, settings: LogSettings, types: dict[str, str]) -> str:
    def cell(column: str | None) -> str:
        if column is None:
            return "NULL::VARCHAR"
        name = _name(column)
        return f"({name} ->> '$')" if types[column] == "JSON" else f"CAST({name} AS VARCHAR)"

    def flag(role: str) -> str:
        if columns.event:
            return f"lower(trim({cell(columns.event)})) IN ({_words(EVENT_WORDS[role])})"
        text = f"lower(trim({cell(getattr(columns, role))}))"
        number = f"try_cast({text} AS DOUBLE)"
        return (
            f"CASE WHEN {number} IS NOT NULL THEN {number} > 0 WHEN {text} IN ({_words(TRUE_WORDS)}) THEN true ELSE false END"
        )

    query = f"nfc_normalize({_single_spaces(f'trim({cell(columns.query)})')})"
    query = query if settings.keep_case else f"lower({query})"
    item = _whole_number(f"nfc_normalize(trim({cell(columns.item)}))")
    position, time = f"try_cast({cell(columns.position)} AS DOUBLE)", _time_sql(columns.time, types, cell(columns.time))
    who, person = columns.session or columns.user, columns.user or columns.session
    unclear = " OR ".join(
        f"({c} IS NOT NULL AND try_cast({c} AS DOUBLE) IS NULL AND lower(trim({c})) NOT IN ({_words(TRUE_WORDS + FALSE_WORDS)}))"
        for c in map(cell, filter(None, (columns.clicked, columns.cart, columns.order)))
    )
    events = _words(tuple(w for words in EVENT_WORDS.values() for w in words))
    nothing = " AND ".join(f"{cell(c)} IS NULL" for c in columns.named().values())
    no_position = (
        f"{position} IS NULL" if not columns.event else f"({cell(columns.position)} IS NOT NULL AND {position} IS NULL)"
    )
    return f"""
        SELECT {query} AS q, {item} AS item, CAST({position} AS INTEGER) AS pos,
            {flag("clicked")} AS clicked, {flag("cart")} AS cart, {flag("order")} AS ord, {time} AS t,
            {f"hash({cell(who)})" if who else "NULL::UBIGINT"} AS who,
            {f"hash({cell(person)})" if person else "NULL::UBIGINT"} AS person,
            {f"hash({cell(columns.search)})" if columns.search else "NULL::UBIGINT"} AS list,
            CAST(CASE WHEN {nothing} THEN 7
                WHEN coalesce({query}, '') = '' THEN 1 WHEN coalesce({item}, '') = '' THEN 2
                WHEN {f"{no_position} OR {position} < 0 OR {position} > 1e9 OR {position} != floor({position})" if columns.position else "false"} THEN 3
                WHEN {f"{time} IS NULL" if columns.time else "false"} THEN 4
                WHEN {unclear or "false"} THEN 5
                WHEN {f"coalesce(lower(trim({cell(columns.event)})), '') NOT IN ({events})" if columns.event else "false"} THEN 6
                ELSE 0 END AS UTINYINT) AS bad
        FROM {source}"""


def _single_spaces(text: str) -> str:
    """Runs of white space as one space. The regular expression, which is slow, is applied only where there is something to replace."""
    odd = " OR ".join([f"contains({text}, '  ')", *(f"contains({text}, chr({code}))" for code in (9, 10, 11, 12, 13))])
    return f"CASE WHEN {odd} THEN regexp_replace({text}, '\\s+', ' ', 'g') ELSE {text} END"


def _whole_number(text: str) -> str:
    """An id such as 10.0, as pandas writes integers with gaps, as 10."""
    return f"CASE WHEN contains({text}, '.0') THEN regexp_replace({text}, '^([0-9]+)\\.0+$', '\\1') ELSE {text} END"


def _words(words: Sequence[str]) -> str:
    return ", ".join(map(_quoted, words))


def _time_sql(column: str | None, types: dict[str, str], cell: str) -> str:
    """Seconds since 1970 as DOUBLE; the unit of a number follows from its size."""
    if column is None:
        return "NULL::DOUBLE"
    if types[column].startswith(("TIMESTAMP", "DATE")):
        return f"epoch({_name(column)})"
    number = f"try_cast({cell} AS DOUBLE)"
    scale = f"CASE WHEN {number} > 1e17 THEN 1e9 WHEN {number} > 1e14 THEN 1e6 WHEN {number} > 1e11 THEN 1e3 ELSE 1 END"
    return f"coalesce({number} / {scale}, epoch(try_cast({cell} AS TIMESTAMPTZ)))"


def _count_rejected(con: DuckDBPyConnection, files: list[str], drops: DropCounts) -> int:
    """Count the lines of a CSV file that DuckDB could not read."""
    lines = "(SELECT file_id, line, min(error_type::VARCHAR) AS kind FROM reject_errors GROUP BY ALL)"
    names = {
        "INVALID ENCODING": "not UTF-8 (--encoding latin-1 may read it)",
        "MISSING COLUMNS": "a line with too few columns (cut off?)",
        "TOO MANY COLUMNS": "a line with too many columns",
        "UNQUOTED VALUE": "a quote that does not end",
    }
    total = 0
    for kind, n, first in con.execute(f"SELECT kind, count(*), min(line) FROM {lines} GROUP BY 1 ORDER BY 1").fetchall():
        drops.add(names.get(kind, str(kind).lower()), f"line {first}", count=n)
        total += n
    con.execute("DELETE FROM reject_errors")
    return total
