"""`MiningResult`: the files that one mining run writes, and its audit."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    import pandas


@dataclass
class MiningResult:
    """The result of a mining run.

    table: the negatives table (Parquet)
    audit: the audit (JSON)
    page: the audit as an HTML page
    mined: number of negatives in the table
    document: the contents of `audit` (see `mmtune.mining.audit`)
    """

    table: Path
    audit: Path
    page: Path
    mined: int
    document: JsonObject

    @staticmethod
    def beside(table: Path, mined: int, document: JsonObject) -> "MiningResult":
        """Create the result for `table`, with the audit next to it (`<table>.audit.json`, `<table>.audit.html`)."""
        audit, page = (table.with_name(table.name + end) for end in (".audit.json", ".audit.html"))
        return MiningResult(table, audit, page, mined, document)

    def to_dict(self) -> JsonObject:
        """Return the audit and the file paths as JSON."""
        paths = {"table": str(self.table), "audit": str(self.audit), "page": str(self.page)}
        return {**self.document, **paths, "mined": self.mined}

    def to_pandas(self) -> "pandas.DataFrame":
        """Read the negatives table: mined and dropped pairs with score, verdict and reason."""
        import pandas

        return pandas.read_parquet(self.table)

    def __repr__(self) -> str:
        return f"MiningResult({self.mined} negatives in {self.table}, audit {self.page})"
