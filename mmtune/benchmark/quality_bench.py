"""`mmtune bench quality`: what tuning pretrained towers gains on sets of your own, beside a peer and simple methods.

Every run of one method on one set with one seed is a cell, and is written to OUT as soon as it is done, so that the same call
continues after an interruption.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from mmtune.benchmark.quality_features import QualityData, Sides, candidates, draw_shots, features_of, open_set
from mmtune.benchmark.quality_floors import FLOORS, Vectors, pair_features
from mmtune.benchmark.quality_peer import train_peer
from mmtune.benchmark.quality_result import Cell, MethodDifference, QualityResult
from mmtune.benchmark.quality_scores import method_difference, save_values, score, score_names
from mmtune.contracts import Embeddings, JsonObject
from mmtune.data.pack.pack import pack
from mmtune.embedding.embed_rows import embed_data
from mmtune.embedding.feature_cache import share_features
from mmtune.errors import MissingExtra, RecipeError
from mmtune.evaluation.clusters import default_cluster
from mmtune.evaluation.tasks.knn import source_of_rows
from mmtune.model.artifact import load
from mmtune.recipe.block import check
from mmtune.recipe.heads_block import HeadsBlock
from mmtune.recipe.pretrained_plans import case_of, pretrained_plan, pretrained_recipe
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_file import overridden, read_document
from mmtune.run import train
from mmtune.runtime.files import read_json, write_json, write_text
from mmtune.runtime.plugins import nearest
from mmtune.runtime.work_lock import file_lock
from mmtune.sweeps.search_space import with_values

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

OURS, PEER = "mmtune", "sentence-transformers"
METHODS = ("base", OURS, PEER, "linear probe", "nearest neighbours", "tip-adapter", "clip-adapter")
TRAINED = (OURS, PEER)
"""Methods that train by a recipe."""
PEER_NOTE = (
    f"{PEER} starts from random heads and trains at the recipe's rate for as many pairs. A recipe that fits the heads before the first step "
    f"(heads.MODALITY.init) may have a rate that is too low for that: give it its own in a second call, e.g. --methods {PEER} "
    "train.lr=1e-4 train.epochs=40 and another --out"
)
"""Note of results that have the peer: its score depends on this."""
SETTINGS = "bench.json"
WITHOUT_VALIDATION: JsonObject = {
    "data.val": None,
    "data.retention": None,
    "retention": None,
    "interpolate": False,
    "gate": None,
    "train.patience": None,
}
"""Keys of a recipe that would let `val` choose something, and their values in the benchmark."""


@dataclass(frozen=True)
class _Task:
    """One cell that may have to be run: a method on a set with a seed and a number of rows a group."""

    data: str
    shots: int | None
    method: str
    seed: int

    @property
    def path(self) -> Path:
        size = "all" if self.shots is None else f"{self.shots}-shot"
        return Path("cells") / self.data / size / f"{self.method.replace(' ', '-')}-{self.seed}.json"

    @property
    def values_path(self) -> Path:
        """The file with the values of its queries."""
        return self.path.with_suffix(".npz")

    def __str__(self) -> str:
        size = "" if self.shots is None else f", {self.shots} a group"
        return f"{self.data}{size}: {self.method}, seed {self.seed}"


def bench_quality(
    data: Mapping[str, str | Path],
    towers: Mapping[str, str],
    out: str | Path,
    *,
    seeds: int = 3,
    methods: Sequence[str] = METHODS,
    shots: Sequence[int] = (),
    recipes: Mapping[str, str | Path] | None = None,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    quiet: bool = True,
) -> QualityResult:
    """Score methods of tuning the same pretrained towers on each set, and write OUT/quality.json and OUT/quality.md.

    data: {name: directory with the packed sets `train` and `val`}; every class is a group of the rows. Methods learn from `train`
        alone and are scored on `val`, which chooses nothing; candidates are all captions of both parts
    towers: {modality: MODEL}, a language tower and one for each other modality of the sets
    out: directory of the results; a later call with the same settings continues there
    seeds: number of runs of each method whose result depends on the seed
    methods: of METHODS
    shots: also run with so many training rows of each group, drawn with the seed; without it all rows are used
    recipes: {name of a set: the recipe file that mmtune and the peer use for it}; without an entry the one that
        `mmtune init --encoders` writes for its modality and size
    overrides: "key=value" strings for all of these recipes, e.g. "train.epochs=2"
    cluster: metadata column of `val`, e.g. the recording, whose values the intervals of differences resample; default: a column called
        recording, if there is one, else single queries
    quiet: print no progress

    Raises RecipeError for unknown methods or other settings than those of the results in OUT, DataError if a set cannot be used.
    """
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise RecipeError(f"--methods {unknown[0]}: no such method{nearest(unknown[0], METHODS)}")
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: must be 1 or more")
    if any(s < 1 for s in shots):
        raise RecipeError(f"--shots {','.join(map(str, shots))}: each must be 1 or more")
    if not data:
        raise RecipeError("--data: name at least one set, NAME=DIR")
    _check_overrides(overrides)
    root = Path(out)
    sets = [open_set(name, directory, towers) for name, directory in data.items()]
    unknown = sorted({*(recipes or {})} - {*data})
    if unknown:
        raise RecipeError(f"--recipe {unknown[0]}=...: no set has this name{nearest(unknown[0], list(data))}")
    root.mkdir(parents=True, exist_ok=True)
    sources = {s.name: source_of_rows(s.val, default_cluster(s.val, cluster)) for s in sets}
    cells, skipped = [], {}
    with file_lock(root / "bench.lock"):
        _claim(root, sets, towers, recipes or {}, overrides, cluster)
        for quality_data in sets:
            recipe, source = (recipes or {}).get(quality_data.name), sources[quality_data.name]
            bench = _SetBench(quality_data, towers, root, recipe, overrides, source, quiet)
            with share_features():  # all cells of a set have the same towers
                for task in _tasks(quality_data.name, methods, shots, seeds):
                    try:
                        cells.append(bench.cell(task))
                    except MissingExtra as e:
                        skipped[task.method] = str(e)
    notes = [PEER_NOTE] if any(c.method == PEER for c in cells) else []
    result = QualityResult(cells, skipped, _differences(root, cells, {s.name: s.sides for s in sets}), notes)
    write_json(root / "quality.json", result.to_dict())
    write_text(root / "quality.md", result.markdown())
    return result


def _check_overrides(overrides: Sequence[str]) -> None:
    """Raise RecipeError for a key that the benchmark sets itself."""
    for key in (o.partition("=")[0] for o in overrides):
        parts = key.split(".")
        prefixes = {".".join(parts[: n + 1]) for n in range(len(parts))}
        if prefixes & {*WITHOUT_VALIDATION}:
            raise RecipeError(f"{key}: is not used here, because val chooses nothing; try it with mmtune train and mmtune eval")
        if prefixes & {"model", "pairs", "data.train", "train.seed", "run.dir"}:
            raise RecipeError(f"{key}: is set by the benchmark, from --data, the towers, --seeds and --out")


def _tasks(name: str, methods: Sequence[str], shots: Sequence[int], seeds: int) -> Iterator[_Task]:
    """Every cell of one set. Where all rows are used and nothing is trained, the seed changes nothing, and one run is enough."""
    for number in shots or (None,):
        for method in methods:
            count = seeds if number is not None or method in TRAINED else 1
            yield from (_Task(name, number, method, seed) for seed in range(count))


def _composed_hash(recipe: str | Path) -> str:
    """SHA-256 of a recipe with the files that it includes."""
    return hashlib.sha256(json.dumps(read_document(recipe), sort_keys=True).encode()).hexdigest()


def _claim(
    root: Path,
    sets: Sequence[QualityData],
    towers: Mapping[str, str],
    recipes: Mapping[str, str | Path],
    overrides: Sequence[str],
    cluster: str | None,
) -> None:
    """Write the settings of the results in OUT, or refuse to mix them with those of other settings."""
    settings: JsonObject = {
        "cluster": cluster,
        "towers": dict(towers),
        "overrides": list(overrides),
        "recipes": {name: _composed_hash(file) for name, file in recipes.items()},
    }
    path = root / SETTINGS
    known = read_json(path) if path.is_file() else {}
    contents = {s.name: _content(s) for s in sets}
    for key, value in settings.items():
        if known and known.get(key) != value:
            raise RecipeError(f"{root}: holds results with other {key}; choose another --out")
    for name, content in contents.items():
        if known and known["data"].get(name, content) != content:
            raise RecipeError(f"{root}: holds results of other rows named {name!r}; choose another --out or name")
    write_json(path, {**settings, "data": {**known.get("data", {}), **contents}})


def _content(quality_data: QualityData) -> str:
    """A hash of the rows, groups and values of both parts."""
    digest = hashlib.sha256()
    for part in (quality_data.train, quality_data.val):
        for name in ("id", "group", *quality_data.sides):
            digest.update(np.ascontiguousarray(part.labels[name]).tobytes())
    return digest.hexdigest()


class _SetBench:
    """Run the cells of one set; its features and its base model are computed when the first cell needs them."""

    def __init__(
        self,
        data: QualityData,
        towers: Mapping[str, str],
        root: Path,
        recipe: str | Path | None,
        overrides: Sequence[str],
        source: Mapping[str, str | None] | None,
        quiet: bool,
    ):
        """source: {id of a scored row: e.g. its recording}; None for single queries"""
        self.source = source
        self.data, self.root, self.recipe, self.overrides, self.quiet = data, root, recipe, overrides, quiet
        self.towers = {m: towers[m] for m in data.sides}
        self._features: dict[str, dict[str, Embeddings]] | None = None

    def cell(self, task: _Task) -> Cell:
        """Return the stored cell, or run it."""
        path = self.root / task.path
        if path.is_file():
            stored = Cell(**read_json(path))
            names = [f"{d} {m}" for d, m in score_names(self.data.sides)]
            return replace(stored, scores={n: stored.scores[n] for n in names if n in stored.scores})
        if not self.quiet:
            print(f"bench quality: {task}", file=sys.stderr, flush=True)
        chosen = None
        if task.shots is not None:
            rows = self.data.rows
            chosen = rows[draw_shots([self.data.train.groups[i] for i in rows], task.shots, task.seed)]
        cell = self._trained(task, chosen) if task.method in TRAINED else self._fitted(task, chosen)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, cell.to_dict())
        return cell

    def _fitted(self, task: _Task, chosen: np.ndarray | None) -> Cell:
        ids = None if chosen is None else np.array([self.data.train.ids[i] for i in chosen])
        rows = self.data.rows if chosen is None else chosen
        heads = check(TypeAdapter(HeadsBlock), self._document(rows).get("heads") or {}, "heads")
        features = pair_features(self._stored_features(), self.data.sides, ids, heads)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        vectors = FLOORS[task.method](features)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        return self._scored(task, vectors, seconds, cpu, len(features.train_signal.ids), 0)

    def _trained(self, task: _Task, chosen: np.ndarray | None) -> Cell:
        self._stored_features()  # runs share the outputs of towers that they leave as they are
        rows = self.data.rows if chosen is None else chosen
        recipe = self._recipe_of(task, rows)
        if task.method == PEER:
            model, seconds, cpu, seen = train_peer(self.data, rows, self.towers, recipe, task.seed)
        else:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            model = load(train(recipe, quiet=self.quiet).artifact)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
            seen = int(recipe.train.epochs * len(rows))
            shutil.rmtree(recipe.run.dir)
        vectors = self._embedded(model)
        return self._scored(task, vectors, seconds, cpu, len(rows), seen)

    def _embedded(self, model: "Model") -> Vectors:
        """Embed the scored rows and the candidates."""
        signal, language = self.data.sides
        queries = embed_data(model, self.data.val, [signal])[signal]
        parts = [embed_data(model, part, [language])[language] for part in (self.data.train, self.data.val)]
        return Vectors(queries, candidates(*parts), queries)

    def _recipe_of(self, task: _Task, rows: np.ndarray) -> Recipe:
        """The recipe of a run, on the training rows `rows` alone and without validation, so that `val` chooses nothing."""
        signal, language = self.data.sides
        document = self._document(rows)
        scratch = self.root / "run"
        shutil.rmtree(scratch, ignore_errors=True)
        values = {
            **WITHOUT_VALIDATION,
            "model": self.towers,
            "pairs": [[language, signal]],
            "data.train": self._training_rows(task, rows),
            "train.seed": task.seed,
            "run.dir": str(scratch),
        }
        return Recipe.parse(with_values(document, values), str(self.recipe or "recipe"))

    def _document(self, rows: np.ndarray) -> dict[str, object]:
        """The recipe for so many training rows, with the overrides, as a document."""
        if self.recipe is not None:
            document = read_document(self.recipe, self.overrides)
        else:
            _, counts = np.unique(self.data.train.labels["group"][rows], return_counts=True)
            plan = pretrained_plan(case_of(self.data.sides.signal), len(rows), float(np.median(counts))).plan
            document = overridden(pretrained_recipe(plan, *self.data.sides), self.overrides)
        if not isinstance(document, dict):
            raise RecipeError(f"{self.recipe}: a recipe is a mapping of keys")
        return document

    def _training_rows(self, task: _Task, rows: np.ndarray) -> str:
        """Directory with the training rows `rows`: the set's own, or a copy without the others."""
        directory = self.data.directory / "train"
        if len(rows) == len(self.data.train):
            return str(directory)
        out = self.root / "rows" / self.data.name / f"{task.shots or 'all'}-{task.seed}"
        kept = set(rows.tolist())
        left_out = out.with_suffix(".txt")
        left_out.parent.mkdir(parents=True, exist_ok=True)
        write_text(left_out, "".join(f"{self.data.train.ids[i]}\n" for i in range(len(self.data.train)) if i not in kept))
        pack(str(directory), out, drop=left_out)
        return str(out)

    def _stored_features(self) -> dict[str, dict[str, Embeddings]]:
        if self._features is None:
            model = load(self.towers)
            self._features = features_of(model, self.data, self.root / "features" / self.data.name, self.quiet)
        return self._features

    def _scored(self, task: _Task, vectors: Vectors, seconds: float, cpu: float, rows: int, pairs: int) -> Cell:
        names, directions = score_names(self.data.sides), score(vectors, self.data.sides, self.source)
        path = self.root / task.values_path
        path.parent.mkdir(parents=True, exist_ok=True)
        save_values(path, directions, names)
        scores = {f"{d} {m}": round(directions[d].metrics[m], 6) for d, m in names if d in directions}
        return Cell(task.data, task.shots, task.method, task.seed, scores, seconds, cpu, rows, pairs)


def _differences(root: Path, cells: Sequence[Cell], sides: Mapping[str, Sides]) -> list[MethodDifference]:
    """The differences of mmtune to every other method of the same set and number of examples, paired by query and seed."""
    tasks = [_Task(c.data, c.shots, c.method, c.seed) for c in cells]
    found = []
    for ours in dict.fromkeys((t.data, t.shots) for t in tasks):
        of = [t for t in tasks if (t.data, t.shots) == ours]
        seeds = [t for t in of if t.method == OURS]
        for method in dict.fromkeys(t.method for t in of if t.method != OURS):
            by_seed = {t.seed: t for t in of if t.method == method}
            alone = next(iter(by_seed.values())) if len(by_seed) == 1 else None  # its result does not depend on the seed
            both = [(other, t) for t in seeds if (other := by_seed.get(t.seed, alone)) is not None]
            files = [(root / other.values_path, root / t.values_path) for other, t in both]
            for name, metric in score_names(sides[ours[0]]):
                if (difference := method_difference(files, name, metric)) is not None:
                    found.append(MethodDifference(*ours, method, f"{name} {metric}", difference))
    return found
