"""Write the table of extras in docs/install.md from pyproject.toml: `python -m site_tools.install_table`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- extras: begin -->", "<!-- extras: end -->"

GIVES = {
    "cpu": "search indexes and nearest-neighbour mining on a CPU",
    "gpu": "the same with faiss on a GPU; instead of `cpu`, never beside it",
    "mining": "BM25 as a source of hard negatives, and `--hybrid` search",
    "pairs": "`mmtune pairs`: pairs and judgments of click logs, labels and annotations",
    "pml": "losses of pytorch-metric-learning: `loss: pml:NAME`",
    "lora": "nothing more: `tune: lora` works without it, peft is installed with mmtune",
    "qlora": "`tune: qlora`, LoRA on 4-bit weights",
    "optimizers": "8-bit optimizers of bitsandbytes",
    "augment": "augmentation of sounds beyond shift and gain",
    "sweep": "`mmtune sweep`",
    "trackers": "`run.trackers`: wandb, mlflow, trackio",
    "lancedb": "`--store lancedb`",
    "pgvector": "`--store pgvector` (PostgreSQL)",
    "qdrant": "`--store qdrant`",
    "qdrant-edge": "`--store qdrant-edge`: Qdrant's engine without a server",
    "ray": "`--engine ray` of `embed`, `mine`, `pack`, `train` and `index embed`",
    "aac": "sound files .m4a and .aac",
    "onnx": "towers from `onnx:FILE`; `mmtune export --to onnx`",
    "openvino": "`mmtune export --to openvino`",
    "beats": "towers from `beats:FILE`",
    "tflite": "towers from `tflite:FILE`",
    "http": "DATA at http(s) addresses",
    "s3": "DATA at s3:// addresses",
    "gcs": "DATA at gs:// addresses",
    "zstd": "streamed .tar.zst",
    "heif": "image files .heic and .heif",
    "serve": "`mmtune serve`: the REST server and the search page",
    "completion": "`mmtune completion`: what a shell completes after `mmtune`",
    "otel": "`mmtune serve`: traces by OpenTelemetry",
    "docs": "this site: `mkdocs build --strict`",
    "test": "the tests (`pytest`)",
    "bench": "the peers that the benchmarks compare with",
    "release": "building a release, its bill of materials and its audit",
    "browser": "tests of pages in a browser",
    "notebook": "running `notebooks/`",
}
"""Extra -> what it gives. A test compares the names with pyproject.toml."""


def extras() -> dict[str, list[str]]:
    """Return the extras of pyproject.toml with their requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, list[str]] = project["optional-dependencies"]
    return found


def table() -> str:
    """Return the table of extras in the order of pyproject.toml."""
    rows = ["| extra | what it gives | packages |", "|---|---|---|"]
    for extra, requirements in extras().items():
        names = [re.split(r"[\[<>=;~ ]", r)[0] for r in requirements]
        shown = ", ".join(n for n in names if n != "mmtune")
        if len(names) > 8:
            shown = f"{len(names)} packages and other extras"
        rows.append(f"| `{extra}` | {GIVES[extra]} | {shown} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """Return the page with the current table between its two marks."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
