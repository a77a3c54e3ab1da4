"""Code blocks of Markdown pages, and a folder in which a reader's commands run."""

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmtune.demo.catalog import write_catalog
from tests.support import checkpoints

ROOT = Path(__file__).parents[2]
CHECKPOINT = "hf:openai/clip-vit-base-patch32"
"""The public checkpoint that the pages name; tests put a small one of the same architecture in its place."""
FENCE = re.compile(r"^```(?P<language>\w+)?[ ]*(?P<note>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block. note: what stands behind the language, e.g. "skip: REASON", "exit 0 or 1" or "file: NAME.py"."""

    page: str
    line: int
    language: str
    note: str
    code: str

    @property
    def skipped(self) -> bool:
        return self.note.startswith("skip:")


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks in order."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    return [
        Block(name, text[: m.start()].count("\n") + 1, m["language"] or "", m["note"].strip(), m["code"])
        for m in FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block: comments removed, continued lines joined."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def write_tables(folder: Path) -> None:
    """train.csv, val.csv and test.csv as a reader has them (image, text, sku, category), with their photos."""
    made = write_catalog(folder / "made", seed=3, skus=12, train_per_sku=8, val_per_sku=6, base_per_kind=0, size=48)
    shutil.move(made / "photos", folder / "photos")
    rows = {split: list(csv.DictReader((made / f"{split}.csv").open(newline=""))) for split in ("train", "val")}
    rows["test"] = [r for i, r in enumerate(rows["val"]) if i % 2]
    rows["val"] = [r for i, r in enumerate(rows["val"]) if not i % 2]
    for split, chosen in rows.items():
        with open(folder / f"{split}.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(["id", "image", "text", "sku", "category"])
            for r in chosen:
                table.writerow(
                    [r["id"], r["image"], r["text"], r["group"], "boots" if r["category"] == "cap" else r["category"]]
                )
    for name, row in (("boot", rows["train"][0]), ("bag", rows["train"][-1])):
        shutil.copy(folder / row["image"], folder / "photos" / f"{name}.jpg")
    (folder / "recipes").symlink_to(ROOT / "recipes")


def substitute(code: str, checkpoint: Path) -> str:
    """The code with a small local checkpoint in place of the public one, so that nothing is downloaded."""
    return code.replace(CHECKPOINT, f"hf:{checkpoint}")


def small_checkpoint(folder: Path) -> Path:
    """A CLIP of the public one's architecture, in Hugging Face's format, small and random."""
    return checkpoints.clip(folder)
