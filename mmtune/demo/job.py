"""The whole job on a small scale: draw, pack, train a generic base, tune it, measure both, cut a search over, show it all.

One model of three towers, one trainer, two corpora. The base has only ever read coarse words; tuning reads the fine ones. Both
are measured on validation photos and recordings that neither training nor any choice of checkpoint has seen. Every stage
leaves a stamp when it is finished, so a killed demo goes on where it stopped.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmtune.errors import DataError
from mmtune.runtime import files

CORPORA = {"catalog": "image", "machines": "audio"}
PAIRS = [["text", m] for m in CORPORA.values()]
METRICS = ("hit@1", "hit@5", "recall@10", "mrr", "map")


@dataclass(frozen=True)
class Sizes:
    """How much is drawn, and how long it is trained. The defaults fit two CPU cores and two minutes."""

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


SMALL = Sizes(4, 4, 4, 2, 1, 1, 1, 2, 2, 1, 1, 1)
"""A few seconds: shows that everything runs, proves nothing about quality."""


class Stages:
    """Runs each stage once a folder; a finished one is read back. `seconds` adds up all of them, earlier calls included."""

    def __init__(self, out: Path, say: Callable[[str], None], total: int):
        self.out, self.say, self.total, self.seconds, self.number = out, say, total, 0.0, 0

    def __call__(self, name: str, what: str, work: Callable[[], Any]) -> Any:
        """The JSON value that `work` returned, now or in an earlier call."""
        stamp = self.out / "stages" / f"{name}.json"
        self.number += 1
        head = f"[{self.number}/{self.total}] {what}"
        if stamp.exists():
            done = files.read_json(stamp)
            self.say(f"{head}: done before")
        else:
            self.say(f"{head} ...")
            begin = time.monotonic()
            value = json.loads(json.dumps(work()))
            done = {"seconds": round(time.monotonic() - begin, 3), "value": value}
            files.write_json(stamp, done)
            self.say(f"{head}: {done['seconds']:.1f} s")
        self.seconds += done["seconds"]
        return done["value"]


def demo(out: str | Path = "runs/demo", *, seed: int = 0, sizes: Sizes | None = None, quiet: bool = False) -> dict[str, Any]:
    """Run the demo in `out`, or finish one that was killed there.

    Returns {"seconds", "before": {direction: {metric: value}}, "after": {...}, "shop": see `mmtune.demo.shop.story`, "out",
    "page", "base", "artifact", "seed"}.
    Raises DataError when `out` holds a demo of another seed or size.
    """
    out, sizes = Path(out), sizes or Sizes()
    _claim(out, {"seed": seed, **asdict(sizes)})
    stages = Stages(out, (lambda line: None) if quiet else _say, 9)
    stages("catalog", "draw a catalog whose products differ in one detail", lambda: _draw_catalog(out, seed, sizes))
    stages("machines", "synthesise machines with graded faults", lambda: _play_machines(out, seed, sizes))
    stages("pack", "check and pack both into shards", lambda: _pack(out))
    base = stages(
        "base", "train a base that knows coarse words only", lambda: _train(out, seed, sizes, tuned=False, quiet=quiet)
    )
    before = stages("before", "measure the base", lambda: evaluate(base, out))
    artifact = stages("tune", "tune it on the fine words", lambda: _train(out, seed, sizes, tuned=True, quiet=quiet))
    after = stages("after", "measure the tuned model", lambda: evaluate(artifact, out))
    shop = stages("shop", "put both behind one search: gate, shadow, promote, roll back", lambda: _sell(out, base, artifact))
    told = {"before": before, "after": after, "shop": shop}
    page = stages("pages", "search before and after", lambda: _show(out, seed, sizes, base, artifact, told))
    return {
        "seconds": round(stages.seconds, 3),
        **told,
        "out": str(out),
        "seed": seed,
        "page": str(out / page),
        "base": base,
        "artifact": artifact,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Remember what this folder is for; refuse another demo in it."""
    path = out / "demo.json"
    if not path.exists():
        if out.exists() and any(not p.name.startswith(".tmp-") for p in out.iterdir()):  # .tmp-: killed while writing demo.json
            raise DataError(f"{out}: not empty and not a demo's; choose another --out")
        files.write_json(path, settings)
        return
    old = files.read_json(path)
    changed = [k for k in settings if old.get(k) != settings[k]]
    if changed:
        raise DataError(f"{out} holds a demo with {changed[0]}={old.get(changed[0])}; choose another --out, or delete it")


def _draw_catalog(out: Path, seed: int, sizes: Sizes) -> None:
    from mmtune.demo.catalog import write_catalog

    write_catalog(
        out / "source" / "catalog",
        seed=seed,
        skus=sizes.skus,
        train_per_sku=sizes.train_per_sku,
        val_per_sku=sizes.val_per_sku,
        base_per_kind=sizes.base_per_kind,
    )


def _play_machines(out: Path, seed: int, sizes: Sizes) -> None:
    from mmtune.demo.machines import write_machines

    write_machines(
        out / "source" / "machines",
        seed=seed,
        machines=sizes.machines,
        train_recordings=sizes.train_recordings,
        val_recordings=sizes.val_recordings,
        clips=sizes.clips,
        base_recordings=sizes.base_recordings,
    )


def _pack(out: Path) -> dict[str, int]:
    from mmtune.data.pack.pack import pack

    counts = {}
    for corpus in CORPORA:
        for split in ("base", "train", "val"):
            report = pack(out / "source" / corpus / f"{split}.csv", out / "data" / corpus / split, max_rejected=0.0)
            counts[f"{corpus}/{split}"] = report.packed
    return counts


def recipe(out: Path, seed: int, sizes: Sizes, *, tuned: bool) -> dict[str, Any]:
    """The recipe of the base, or of the tuned model; nothing is validated on, so the last weights are the model."""
    epochs, lr = (sizes.tune_epochs, 1e-3) if tuned else (sizes.base_epochs, 2e-3)
    return {
        "model": str(out / "base" / "artifact") if tuned else f"tiny:all@{seed}",
        "data": {"train": [str(out / "data" / c / ("train" if tuned else "base")) for c in CORPORA], "workers": 1},
        "pairs": PAIRS,
        "train": {"epochs": epochs, "batch_size": 64, "lr": lr, "seed": seed, "precision": "fp32"},
        "run": {"dir": str(out / ("tuned" if tuned else "base"))},
    }


def _train(out: Path, seed: int, sizes: Sizes, *, tuned: bool, quiet: bool) -> str:
    from mmtune.run import train

    plan = recipe(out, seed, sizes, tuned=tuned)
    started = (Path(plan["run"]["dir"]) / "recipe.yaml").exists()
    return train(plan, resume=started, quiet=quiet)["artifact"]


def evaluate(model: str, out: Path) -> dict[str, dict[str, float]]:
    """Direction -> {metric: value} over both validation sets at once."""
    from mmtune.data.shards.dataset import open_data
    from mmtune.evaluation.evaluate_model import evaluate as measure

    result = measure(model, open_data([str(out / "data" / c / "val") for c in CORPORA]))
    return {name: d.metrics for name, d in result.directions.items()}


def _sell(out: Path, base: str, artifact: str) -> dict[str, Any]:
    from mmtune.demo.shop import story

    return story(out / "shop", base, artifact, str(out / "data" / "catalog" / "val"))


def _show(out: Path, seed: int, sizes: Sizes, base: str, artifact: str, told: Mapping[str, Any]) -> str:
    from mmtune.demo.pages import write_pages
    from mmtune.demo.searches import looked_up, searches

    found = searches({c: str(out / "data" / c / "val") for c in CORPORA}, base, artifact, sizes.searches)
    facts = {
        "seed": seed,
        "products": sizes.skus,
        "machines": sizes.machines,
        "queries": "spread over the validation set by a fixed rule, not chosen by their answers",
    }
    before, after = ({d: {m: v[m] for m in METRICS} for d, v in told[k].items()} for k in ("before", "after"))
    shop = {**told["shop"], "searches": looked_up(str(out / "data" / "catalog" / "val"), told["shop"]["answers"])}
    return str(write_pages(out, found, before, after, facts, shop)[0].relative_to(out))


def table(document: Mapping[str, Any]) -> str:
    """Before and after, a line a direction, for a terminal."""
    from rich.console import Console
    from rich.table import Table

    from mmtune.demo.shop import lines

    grid = Table(title="before -> after, on photos and recordings that nothing was tuned on", title_justify="left")
    grid.add_column("direction", no_wrap=True)
    for metric in METRICS:
        grid.add_column(metric, justify="right", no_wrap=True)
    for name, after in document["after"].items():
        before = document["before"][name]
        colors = ("green" if after[m] > before[m] else "red" if after[m] < before[m] else "" for m in METRICS)
        cells = (f"{before[m]:.3f} -> {after[m]:.3f}" for m in METRICS)
        grid.add_row(name, *(f"[{c}]{cell}[/{c}]" if c else cell for c, cell in zip(colors, cells, strict=True)))
    console = Console(width=110)
    with console.capture() as shown:
        console.print(grid)
        console.print("\n".join(lines(document["shop"])), highlight=False, markup=False, soft_wrap=True)
        console.print(f"{document['seconds']:.0f} s. Look at {document['page']}", highlight=False, soft_wrap=True)
    return shown.get()
