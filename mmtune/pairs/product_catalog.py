"""Make pairs of media and captions from a product catalog: several pictures a product, captions from attribute templates."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmtune import modalities
from mmtune.data.identity_labels import identity_string
from mmtune.data.pack.columns import named_column, nested_cell
from mmtune.data.sources.row_source import Cells, InvalidRow, RowSource, open_source
from mmtune.data.sources.tables import open_csv
from mmtune.errors import DataError
from mmtune.pairs.caption_template import CaptionTemplate
from mmtune.pairs.carried_columns import CarriedColumns, attribute_strings
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.invalid_rows import count_invalid
from mmtune.pairs.joined_media import JoinedMedia
from mmtune.pairs.markup import plain_text
from mmtune.pairs.media_cells import MediaCells
from mmtune.pairs.merchant_feed import SUFFIXES, open_feed
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.runtime.progress import Progress

COMBINATIONS = ("each", "all")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z]|[\"'\u201c(])")
SHORTEST_SENTENCE = 3
"""Words that a sentence of a description needs to be a caption of its own."""


@dataclass
class Product:
    """A product: all rows with its id.

    media: modality -> its files
    captions: its captions
    carried: values of the carried columns; those of the first row that has one
    rows_left: number of its rows that have not been read yet
    """

    id: str
    group: str
    media: dict[str, list[str]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    carried: dict[str, object] = field(default_factory=dict)
    rows_left: int = 0


def open_product_source(path: str | Path) -> RowSource:
    """Open a table, a folder of tables, or a product feed (XML, or text with tabs in a .txt file). Raises DataError if it cannot be read."""
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return open_feed(path)
    return open_csv(path, "\t") if path.suffix.lower() == ".txt" and path.is_file() else open_source(path)


class CatalogReader:
    """Reads the products of a catalog.

    source: the catalog
    templates: caption templates, all of which are used
    sentences: columns whose sentences are captions, too
    id, group: columns; without a group a product is a group of its own
    media: modality -> columns with files, of the catalog or of the joined tables
    join: tables with further files, joined by the id
    rows: number of rows of the source, those included that are not valid

    Raises DataError, which names the nearest column, if one does not exist.
    """

    def __init__(
        self,
        source: RowSource,
        templates: Sequence[str],
        sentences: Sequence[str],
        id: str,
        group: str | None,
        media: Mapping[str, Sequence[str]],
        join: Sequence[RowSource] = (),
    ):
        self.source = source
        self.id = named_column(source, id, "id")
        self.group = named_column(source, group, "group") if group else None
        joined_columns = {c for table in join for c in table.columns}
        self.media = {
            m: [c if c not in source.columns and c in joined_columns else named_column(source, c, m) for c in columns]
            for m, columns in media.items()
        }
        self.join = JoinedMedia(join, self.id, self.media)
        self.sentences = [named_column(source, c, "sentences") for c in sentences]
        self.templates = [CaptionTemplate(t) for t in dict.fromkeys(templates)]
        for template in self.templates:
            template.check(source.columns, str(source.path))
        if not self.templates and not self.sentences:
            raise DataError(f"{source.path}: no caption; give --caption '{{title}}' or --sentences COLUMN")
        if not any(self.media.values()):
            options = " or ".join(f"--{n} COLUMN" for n in modalities.non_language(modalities.names()))
            raise DataError(
                f"{source.path}: no column with files; name one with {options}; columns: {', '.join(source.columns)}"
            )
        media_columns = {c for columns in self.media.values() for c in columns}
        rest = [c for c in source.columns if c not in {self.id, self.group} | media_columns]
        self.carried = CarriedColumns(source, rest)
        self._media_columns = media_columns
        self.rows = self.joined = 0
        self._row_counts = self._count_rows()

    def _count_rows(self) -> dict[bytes, int]:
        """Digest of each id that occurs several times -> number of its rows. The other ids need eight bytes each in memory."""
        digests = []
        for _, cells in self.source.rows(set()):
            self.rows += 1
            if id := self._row_id(cells):
                digests.append(_digest(id))
        unique, counts = np.unique(np.frombuffer(b"".join(digests), np.uint64), return_counts=True)
        self._known = unique
        return {d.tobytes(): int(n) for d, n in zip(unique[counts > 1], counts[counts > 1], strict=True)}

    def _row_id(self, cells: Cells | InvalidRow) -> str | None:
        return None if isinstance(cells, InvalidRow) else identity_string(nested_cell(cells, self.id))

    def is_known(self, id: str) -> bool:
        """Whether the catalog has a product with this id."""
        digest = np.frombuffer(_digest(id), np.uint64)
        at = np.searchsorted(self._known, digest[0])
        return bool(at < len(self._known) and self._known[at] == digest[0])

    def products(self, cells_to_media: MediaCells, drops: DropCounts, progress: Progress) -> Iterator[Product]:
        """Yield each product when its last row was read. Rows of one id are joined; `joined` counts those after the first.

        drops: counts rows that are not valid or have no id, and captions of which every attribute is missing
        """
        waiting: dict[str, Product] = {}
        for number, cells in self.source.rows(self._media_columns):
            progress.advance(1)
            if isinstance(cells, InvalidRow):
                count_invalid(drops, cells, f"row {number}")
                continue
            id = self._row_id(cells)
            if id is None:
                drops.add(f"no id: {self.id} is empty", f"row {number}")
                continue
            product = waiting.get(id)
            if product is None:
                group = identity_string(nested_cell(cells, self.group)) if self.group else None
                product = Product(id, group or id, rows_left=self._row_counts.get(_digest(id), 1))
                waiting[id] = product
            else:
                self.joined += 1
            self._add_row(product, cells, cells_to_media, drops)
            product.rows_left -= 1
            if not product.rows_left:
                for modality, files in self.join.take(id).items():
                    own = product.media.setdefault(modality, [])
                    own += [f for f in dict.fromkeys(files) if f not in own]
                yield waiting.pop(id)
        for id, count in self.join.unused():
            drops.add("of a product that is not in the catalog", f"{self.id} {id}", count=count, unit="files")

    def _add_row(self, product: Product, cells: Cells, cells_to_media: MediaCells, drops: DropCounts) -> None:
        for modality, columns in self.media.items():
            files = product.media.setdefault(modality, [])
            for column in columns:
                found = cells_to_media.paths(cells.get(column), modality, f"{self.id} {product.id}")
                files += [f for f in found if f not in files]
        attributes = {n: plain_text(v) for n, v in attribute_strings(cells).items()}
        for template in self.templates:
            caption = template.fill(attributes)
            if caption is None:
                drops.add(f"{template.source!r} has no attribute for it", f"{self.id} {product.id}", unit="captions")
            else:
                product.captions.setdefault(caption.casefold(), caption)
        for column in self.sentences:
            for sentence in sentences_of(attributes.get(column, "")):
                product.captions.setdefault(sentence.casefold(), sentence)
        for name, value in self.carried.values(cells).items():
            product.carried.setdefault(name, value)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text that have at least three words, without the full stop."""
    sentences = (s.strip().removesuffix(".") for s in SENTENCE_END.split(text))
    return [s for s in sentences if len(s.split()) >= SHORTEST_SENTENCE]


def _digest(id: str) -> bytes:
    return blake2b(id.encode("utf-8", "replace"), digest_size=8).digest()


def _rows(product: Product, combine: str) -> Iterator[dict[str, str]]:
    """The rows of a product: {modality: value}. `each`: as many as its longest list; `all`: each medium with each caption."""
    language = next(n for n in modalities.names() if modalities.get(n).language)
    captions = list(product.captions.values())
    media = {m: files for m, files in product.media.items() if files}
    count = max(map(len, media.values()))
    if combine == "all":
        yield from (
            {**{m: files[i % len(files)] for m, files in media.items()}, language: caption}
            for i in range(count)
            for caption in captions
        )
        return
    for i in range(max(count, len(captions))):
        yield {**{m: files[i % len(files)] for m, files in media.items()}, language: captions[i % len(captions)]}


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
    """Make a table of media and captions from a product catalog; see `mmtune.pairs_from_catalog`."""
    if combine not in COMBINATIONS:
        raise DataError(f"--combine {combine}: one of {', '.join(COMBINATIONS)}")
    opened = open_product_source(source)
    by_modality = {m: [c] if isinstance(c, str) else list(c) for m, c in media.items()}
    reader = CatalogReader(opened, captions, sentences, id, group, by_modality, [open_product_source(j) for j in join])
    arguments = {
        "captions": [t.source for t in reader.templates],
        "sentences": reader.sentences,
        "id": reader.id,
        "group": reader.group,
        "media": reader.media,
        "combine": combine,
        "separator": separator,
    }
    language = next(n for n in modalities.names() if modalities.get(n).language)
    names = ["id", "group", *reader.media, language]
    columns = {**dict.fromkeys(names, pa.string()), **reader.carried.types}
    sources = [source_identity(path) for path in (source, *join)]
    with PairsWriter(out, "catalog", arguments, sources, columns=columns, base=False, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        reader.join.read(Path(out), writer.files, writer.drops, separator)
        media_cells = MediaCells(opened.folder, Path(out), writer.files, writer.drops, separator)
        products, pictures, of_products = 0, 0, 0
        with Progress("catalog", opened.total, quiet=quiet) as progress:
            for product in reader.products(media_cells, writer.drops, progress):
                where = f"{reader.id} {product.id}"
                if not any(product.media.values()):
                    writer.drops.add(
                        "no file: " + " and ".join(c for cs in reader.media.values() for c in cs), where, unit="products"
                    )
                    continue
                if not product.captions:
                    writer.drops.add("no caption", where, unit="products")
                    continue
                products += 1
                pictures += sum(map(len, product.media.values()))
                of_products += len(product.captions)
                for n, row in enumerate(_rows(product, combine), 1):
                    row_id = product.id if n == 1 else f"{product.id}#{n}"
                    while n > 1 and reader.is_known(row_id):
                        row_id += "#"
                    writer.add_row(id=row_id, group=product.group, **row, **product.carried)
        if not products:
            raise DataError(f"{source}: no product has both a file and a caption ({writer.drops.reasons()})")
        measures = {"products": products, "files": pictures, "captions": of_products, "rows joined by id": reader.joined}
        return writer.publish(reader.rows + reader.join.rows, measures)
