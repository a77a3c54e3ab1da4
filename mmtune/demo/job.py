"""`mmtune demo`: the whole workflow at a small scale, on product photos and machine sounds that it generates itself.

It generates and packs the data, trains a base model, tunes it, evaluates both models, replaces the model of a live index, and
writes a page that shows the results. One model with three towers is trained on two corpora. The base is trained on coarse
captions only, the tuned model on fine ones. Both are evaluated on photos and recordings that were not used in training. Every
finished stage leaves a file, so that a demo that was killed continues at the stage where it stopped.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.runtime import files

if TYPE_CHECKING:
    from mmtune.demo.release_story import ReleaseStory

CORPORA = {"catalog": "image", "machines": "audio"}
"""{corpus: the modality that is paired with text in it}"""
PAIRS = [["text", m] for m in CORPORA.values()]
METRICS = ("hit@1", "hit@5", "recall@10", "mrr", "map")

Metrics = dict[str, dict[str, float]]
"""{direction: {metric: value}}"""


@dataclass(frozen=True)
class DemoSize:
    """How much data is generated and how long the models are trained. The defaults take two minutes on two CPU cores."""

    skus: int = 48
    train_per_sku: int = 20
    val_per_sku: int = 5
    base_per_kind: int = 80
    machines: int = 3
    train_recordings: int = 4
    val_recordings: int = 2
    clips: int = 4
    base_recordings: int = 24
    base_epochs: float = 4
    tune_epochs: float = 10
    searches: int = 3


SMALL = DemoSize(4, 4, 4, 2, 1, 1, 1, 2, 2, 1, 1, 1)
"""A size that takes a few seconds. It shows that everything runs, but the metrics mean nothing."""


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    seconds: run time of all stages
    before, after: metrics of the base and of the tuned model
    release: what happened to the index
    out: the demo's folder
    page: path of the HTML page
    base, artifact: artifacts of the base and of the tuned model
    """

    seconds: float
    before: Metrics
    after: Metrics
    release: "ReleaseStory"
    out: str
    seed: int
    page: str
    base: str
    artifact: str

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune demo --json`."""
        return asdict(self)


class Stages:
    """Runs each stage once and stores its result in a folder; a finished stage is read back instead of run again.

    seconds: run time of all stages, including those run by earlier calls
    """

    def __init__(self, out: Path, log: Callable[[str], None], total: int):
        self.out, self.log, self.total, self.seconds, self.number = out, log, total, 0.0, 0

    def run(self, name: str, description: str, work: "Callable[[], JsonObject | str | None]") -> "JsonObject | str | None":
        """Return the JSON value returned by `work`, which is called only if the stage is not finished yet."""
        record = self.out / "stages" / f"{name}.json"
        self.number += 1
        head = f"[{self.number}/{self.total}] {description}"
        if record.exists():
            done = files.read_json(record)
            self.log(f"{head}: done before")
        else:
            self.log(f"{head} ...")
            begin = time.monotonic()
            value = json.loads(json.dumps(work()))
            done = {"seconds": round(time.monotonic() - begin, 3), "value": value}
            files.write_json(record, done)
            self.log(f"{head}: {done['seconds']:.1f} s")
        self.seconds += done["seconds"]
        return done["value"]

    def path(self, name: str, description: str, work: Callable[[], str]) -> str:
        """Same as `run`, for a stage that returns a path."""
        return str(self.run(name, description, work))

    def document(self, name: str, description: str, work: Callable[[], JsonObject]) -> JsonObject:
        """Same as `run`, for a stage that returns a JSON object."""
        value = self.run(name, description, work)
        assert isinstance(value, dict)
        return value


def demo(out: str | Path = "runs/demo", *, seed: int = 0, size: DemoSize | None = None, quiet: bool = False) -> DemoResult:
    """Run the demo in the folder `out`, or continue one that was killed there.

    Raises DataError if `out` holds a demo with other settings, or other files.
    """
    from mmtune.demo.release_story import ReleaseStory

    out, size = Path(out), size or DemoSize()
    _check_settings(out, {"seed": seed, **asdict(size)})
    stages = Stages(out, (lambda line: None) if quiet else _log, 9)
    stages.run("catalog", "draw a catalog whose products differ in one detail", lambda: _draw_catalog(out, seed, size))
    stages.run("machines", "synthesise machines with graded faults", lambda: _synthesise_machines(out, seed, size))
    stages.run("pack", "check and pack both into shards", lambda: _pack(out))
    base = stages.path(
        "base", "train a base model on coarse captions", lambda: _train(out, seed, size, tuned=False, quiet=quiet)
    )
    before: Metrics = stages.document("before", "evaluate the base", lambda: evaluate(base, out))
    artifact = stages.path("tune", "tune it on fine captions", lambda: _train(out, seed, size, tuned=True, quiet=quiet))
    after: Metrics = stages.document("after", "evaluate the tuned model", lambda: evaluate(artifact, out))
    release = ReleaseStory(
        **stages.document(
            "release",
            "replace the model behind a search: gate, shadow, promote, roll back",
            lambda: _release(out, base, artifact),
        )
    )
    page = stages.path(
        "pages",
        "show searches before and after",
        lambda: _write_pages(out, seed, size, base, artifact, before, after, release),
    )
    return DemoResult(round(stages.seconds, 3), before, after, release, str(out), seed, str(out / page), base, artifact)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_settings(out: Path, settings: JsonObject) -> None:
    """Write the settings into a new folder. Raises DataError if the folder has other settings, or is not a demo's."""
    path = out / "demo.json"
    if not path.exists():
        # files named .tmp-* may be left by a demo that was killed while it wrote demo.json
        if out.exists() and any(not p.name.startswith(".tmp-") for p in out.iterdir()):
            raise DataError(f"{out}: not empty, and holds no demo; choose another --out")
        files.write_json(path, settings)
        return
    stored = files.read_json(path)
    changed = [k for k in settings if stored.get(k) != settings[k]]
    if changed:
        raise DataError(f"{out} holds a demo with {changed[0]}={stored.get(changed[0])}; choose another --out, or delete it")


def _draw_catalog(out: Path, seed: int, size: DemoSize) -> None:
    from mmtune.demo.catalog import write_catalog

    write_catalog(
        out / "source" / "catalog",
        seed=seed,
        skus=size.skus,
        train_per_sku=size.train_per_sku,
        val_per_sku=size.val_per_sku,
        base_per_kind=size.base_per_kind,
    )


def _synthesise_machines(out: Path, seed: int, size: DemoSize) -> None:
    from mmtune.demo.machines import write_machines

    write_machines(
        out / "source" / "machines",
        seed=seed,
        machines=size.machines,
        train_recordings=size.train_recordings,
        val_recordings=size.val_recordings,
        clips=size.clips,
        base_recordings=size.base_recordings,
    )


def _pack(out: Path) -> JsonObject:
    from mmtune.data.pack.pack import pack

    counts = {}
    for corpus in CORPORA:
        for split in ("base", "train", "val"):
            packed = pack(out / "source" / corpus / f"{split}.csv", out / "data" / corpus / split, max_rejected=0.0)
            counts[f"{corpus}/{split}"] = packed.packed
    return counts


def recipe(out: Path, seed: int, size: DemoSize, *, tuned: bool) -> JsonObject:
    """Return the recipe of the base or of the tuned model. There is no validation set, so the last weights are kept."""
    epochs, lr = (size.tune_epochs, 1e-3) if tuned else (size.base_epochs, 2e-3)
    return {
        "model": str(out / "base" / "artifact") if tuned else f"tiny:all@{seed}",
        "data": {"train": [str(out / "data" / c / ("train" if tuned else "base")) for c in CORPORA], "workers": 1},
        "pairs": PAIRS,
        "train": {"epochs": epochs, "batch_size": 64, "lr": lr, "seed": seed, "precision": "fp32"},
        "run": {"dir": str(out / ("tuned" if tuned else "base"))},
    }


def _train(out: Path, seed: int, size: DemoSize, *, tuned: bool, quiet: bool) -> str:
    from mmtune.run import train

    wanted = recipe(out, seed, size, tuned=tuned)
    started = (Path(wanted["run"]["dir"]) / "recipe.yaml").exists()
    return train(wanted, resume=started, quiet=quiet).artifact


def evaluate(model: str, out: Path) -> Metrics:
    """Return the metrics of every direction, over both validation sets together."""
    from mmtune.data.shards.dataset import open_data
    from mmtune.evaluation.evaluate_model import evaluate as evaluate_model

    result = evaluate_model(model, open_data([str(out / "data" / c / "val") for c in CORPORA]))
    return {name: d.metrics for name, d in result.directions.items()}


def _release(out: Path, base: str, artifact: str) -> JsonObject:
    from mmtune.demo.release_story import release_story

    return release_story(out / "shop", base, artifact, str(out / "data" / "catalog" / "val")).to_dict()


def _write_pages(
    out: Path,
    seed: int,
    size: DemoSize,
    base: str,
    artifact: str,
    before: Metrics,
    after: Metrics,
    release: "ReleaseStory",
) -> str:
    """Write the page, a PNG of every search, and before_after.png. Returns the page's path relative to `out`."""
    from mmtune.demo.demo_page import before_after, png, write_pages
    from mmtune.demo.example_searches import KINDS, example_searches, searches_of_versions

    searches = example_searches({c: str(out / "data" / c / "val") for c in CORPORA}, base, artifact, size.searches)
    first = [searches[kind.heading][0] for kind in KINDS if kind.query != kind.candidates and kind.query == "text"]
    files.write_bytes(out / "before_after.png", png(before_after(first)))
    facts = {
        "seed": seed,
        "products": size.skus,
        "machines": size.machines,
        "queries": "spread over the validation set by a fixed rule, not chosen by their results",
    }
    shown = [{d: {m: v[m] for m in METRICS} for d, v in metrics.items()} for metrics in (before, after)]
    of_versions = searches_of_versions(str(out / "data" / "catalog" / "val"), release.answers)
    document = {**release.to_dict(), "searches": of_versions}
    return str(write_pages(out, searches, shown[0], shown[1], facts, document)[0].relative_to(out))


def table(result: DemoResult) -> str:
    """Format the metrics before and after as a table for the terminal, one line per direction."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title="before -> after, on photos and recordings that were not trained on", title_justify="left")
    grid.add_column("direction", no_wrap=True)
    for metric in METRICS:
        grid.add_column(metric, justify="right", no_wrap=True)
    for name, after in result.after.items():
        grid.add_row(name, *(_change(result.before[name][m], after[m]) for m in METRICS))
    console = Console(width=110)
    with console.capture() as printed:
        console.print(grid)
        console.print("\n".join(result.release.lines()), highlight=False, markup=False, soft_wrap=True)
        console.print(f"{result.seconds:.0f} s. Look at {result.page}", highlight=False, soft_wrap=True)
    return printed.get()


def _change(before: float, after: float) -> str:
    """Format a table cell, green if the metric rose and red if it fell."""
    cell = f"{before:.3f} -> {after:.3f}"
    color = "green" if after > before else "red" if after < before else ""
    return f"[{color}]{cell}[/{color}]" if color else cell
