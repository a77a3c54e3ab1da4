"""What one mining run leaves: the table, its audit, and the audit as a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    import pandas


@dataclass
class MiningResult:
    """Files of a run and the number of negatives in `table`; document: the audit (see `mmtune.mining.audit`)."""

    table: Path
    audit: Path
    page: Path
    mined: int
    document: JsonObject

    @staticmethod
    def beside(table: Path, mined: int, document: JsonObject) -> "MiningResult":
        """The result whose audit lies beside `table` (`<table>.audit.json`, `<table>.audit.html`)."""
        audit, page = (table.with_name(table.name + end) for end in (".audit.json", ".audit.html"))
        return MiningResult(table, audit, page, mined, document)

    def to_dict(self) -> JsonObject:
        """The audit and the paths, as JSON."""
        paths = {"table": str(self.table), "audit": str(self.audit), "page": str(self.page)}
        return {**self.document, **paths, "mined": self.mined}

    def to_pandas(self) -> "pandas.DataFrame":
        """The negatives table: mined and dropped pairs with score, verdict and reason."""
        import pandas

        return pandas.read_parquet(self.table)

    def __repr__(self) -> str:
        return f"MiningResult({self.mined} negatives in {self.table}, audit {self.page})"
