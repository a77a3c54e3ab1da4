"""Recipe -> objects -> fit -> artifact: the composition root, in the order things happen."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.comparison.gate import Gate
from mmtune.comparison.retention import refuse_trained_retention
from mmtune.contracts import Embeddings, Pair, direction
from mmtune.data.loader.batch_plan import plan
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.mixup import augmentation
from mmtune.data.shards.dataset import Data, open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import RecipeError, TrainingError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.metrics import metric_columns
from mmtune.evaluation.trained_pairs import trained_pairs
from mmtune.mining.mine_model import find_verifier
from mmtune.mining.rounds import Rounds
from mmtune.model import artifact
from mmtune.model.prompts import for_training, parse_prompts
from mmtune.recipe.recipe import Interpolate, Recipe, dump, load_recipe, parse, parse_size
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes, init_processes, is_restarted
from mmtune.runtime.files import write_json, write_text
from mmtune.training.build_objective import build_objective
from mmtune.training.loop import Trainer
from mmtune.training.objective import Objective
from mmtune.training.precision import resolve_precision
from mmtune.training.preflight import check_demands
from mmtune.training.regularise.wise_ft import interpolate
from mmtune.training.teacher_cache import build_teachers
from mmtune.training.tuning.adapter_files import save_adapters, save_provenance
from mmtune.training.tuning.lp_ft import head_stage
from mmtune.training.tuning.tune import TunedModel, tune
from mmtune.training.tuning.tune_spec import LOW_RANK, parse_tune

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Embed = Callable[..., dict[str, Embeddings]]
"""How validation embeds: `embed_data`, or from kept features."""


def train(
    recipe: "Recipe | dict[str, Any] | str | Path", overrides: Sequence[str] = (), *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Run a recipe (a file, plain data, or a Recipe); returns {"artifact", "fingerprint", "pairs_per_second", "metrics", ...}
    ("result": the same metrics as a typed Result, None without data.val).

    RUN/ gets recipe.yaml, environment.json, metrics.jsonl, tensorboard/, checkpoints/ and artifact/. With `resume` a run that
    was stopped goes on to the same result; without it a RUN that holds a run is refused. Raises MmtuneError.

    Started several times by torchrun or accelerate, the processes train together on the recipe's batches; the first writes,
    the others return what it does (without "result"). RUN must be one directory for all of them.
    """
    with init_processes() as processes:
        return _train(recipe, overrides, resume or is_restarted(), quiet or not processes.is_main_process, processes)


def _train(
    recipe: "Recipe | dict[str, Any] | str | Path", overrides: Sequence[str], resume: bool, quiet: bool, processes: Processes
) -> dict[str, Any]:
    recipe = _recipe(recipe, overrides)
    Gate.read(recipe.gate)  # said now, not when it is needed
    prompts = None if recipe.prompts is None else parse_prompts(recipe.prompts)
    directory = Path(recipe.run.dir)
    with processes.main_process_first():
        if processes.is_main_process:
            _claim(directory, recipe, resume)
    sources = recipe.data.sources()
    data = WeightedConcat([open_data(s.path) for s in sources], [s.weight for s in sources])
    val = open_data(recipe.data.val) if recipe.data.val else None
    general = open_data(recipe.data.general) if recipe.data.general else None
    model = artifact.load(recipe.model)
    base_mark = model.fingerprint
    if prompts is not None:
        model.set_prompts(prompts)
    if recipe.windows is not None:
        model.set_windows(recipe.windows)
    pairs = choose_pairs(recipe, model, data)
    model.ensure_logit_scales(pairs)
    with processes.main_process_first():
        objective = _objective(recipe, model, data, pairs, quiet, processes)
    trained, usable = trained_modalities(pairs), usable_rows(data, pairs)
    if usable.sum() < 2:
        raise RecipeError(
            f"pairs: {data.spec} has {int(usable.sum())} rows with both sides of {_named(pairs)}; at least 2 are needed"
        )
    if general is not None:
        refuse_trained_retention(general, data, usable, trained)
    between = _between(recipe)
    augment = augmentations(recipe, trained, data)
    heads = _heads_first(recipe, model, trained, resume, quiet, processes)
    tuned = tune(model, recipe.tune, trained, list(recipe.augment), recipe.train.seed, between is not None, heads)
    embed = _prepare(tuned, [data, val, general], quiet)
    stream = Loader(
        data,
        {m: for_training(model.towers[m].preprocess, model.prompts, m) for m in trained} | tuned.feature_preprocess,
        augment,
        seed=recipe.train.seed,
        workers=recipe.data.workers,
        cache_bytes=parse_size(recipe.data.cache, "data.cache"),
        columns=objective.columns,
        processes=processes,
        prepared=tuned.features.items if tuned.features else None,
        in_step=recipe.train.shard,
    )
    validate = _validators(val, general, pairs, recipe.train.metric, embed, processes)
    batches = plan(data, usable, recipe.train.batch_size, recipe.train.seed, recipe.data.batches)
    check_demands(objective, data, stream.columns, batches(0))
    rounds = _rounds(recipe, model, data, batches, pairs, base_mark, quiet, processes) if recipe.mining else None
    trainer = Trainer(
        model,
        objective,
        stream,
        rounds.plan if rounds else batches,
        recipe.train,
        directory,
        tuned=tuned,
        quiet=quiet,
        validate=rounds.watch(validate) if rounds and validate else validate,
        hard_negatives=rounds.extra if rounds else None,
        processes=processes,
    )
    if resume:
        trainer.resume()
    trainer.fit()
    if not processes.is_main_process:
        return {**processes.broadcast(), "result": None}
    trainer.load_best()
    validate = _validators(val, general, pairs, recipe.train.metric, embed, SINGLE_PROCESS)
    coefficient = _finish(tuned, between, validate, directory, recipe, base_mark)
    model.info |= {"matryoshka": sorted(recipe.matryoshka.dims) if recipe.matryoshka else [], "seen": _seen(model, pairs)}
    result = evaluate(model, val) if val else None
    metrics = result.to_dict() if result else {}
    info = _info(recipe, model, data, base_mark, tuned, pairs) | {"interpolated": coefficient, "steps": trainer.state.step}
    seen = {k: data.labels[k][usable] for k in ("id", *trained)}
    mark = artifact.save(model, directory / "artifact", metrics=metrics, info=info, trained_on=seen)
    if tuned.adapters:
        save_provenance(directory / "adapters", directory / "artifact", info)
    document = {
        "artifact": str(directory / "artifact"),
        "fingerprint": mark,
        "trainable": {m: c.to_dict() for m, c in tuned.counts.items()},
        "coefficient": coefficient,
        "metrics": metrics,
        **_course(trainer),
    }
    processes.broadcast(document)
    return {**document, "result": result}


def _info(
    recipe: Recipe, model: "Model", data: WeightedConcat, base_mark: str, tuned: TunedModel, pairs: Sequence[Pair]
) -> dict[str, Any]:
    """Where the artifact comes from, for its manifest and its card."""
    found = {
        "base": str(model.info.get("source")),
        "data": data.spec,
        "data_fingerprint": data.fingerprint,
        "base_fingerprint": base_mark,
        "tune": {m: c.how for m, c in tuned.counts.items()},
        "seed": recipe.train.seed,
        "precision": resolve_precision(recipe.train.precision),
        "pairs": [list(p) for p in pairs],
        "seen": model.info["seen"],
    }
    return found | ({"matryoshka": model.info["matryoshka"]} if recipe.matryoshka else {})


def _seen(model: "Model", pairs: Sequence[Pair]) -> list[list[str]]:
    """The pairs that its checkpoints, earlier runs and this one trained."""
    return [list(p) for p in sorted({*trained_pairs(model), *((min(p), max(p)) for p in pairs)})]


def _heads_first(
    recipe: Recipe, model: "Model", trained: Sequence[str], resume: bool, quiet: bool, processes: Processes
) -> "Model | None":
    """The model whose heads were trained alone, where `tune` has a `head_first`: a run of its own in RUN/head_first."""
    stage = head_stage(recipe, parse_tune(recipe.tune, list(model.towers), trained))
    if stage is None:
        return None
    directory = Path(stage.run.dir)
    if resume and (directory / "artifact" / "mmtune.json").is_file():
        with processes.main_process_first():
            if processes.is_main_process:
                _claim(directory, stage, True)  # done before, by this very recipe
    else:
        _train(stage, [], resume, quiet, processes)
    return artifact.load(directory / "artifact")


def _course(trainer: Trainer) -> dict[str, Any]:
    """How the run went, for its document."""
    state = trainer.state
    return {
        "pairs_per_second": state.pairs_per_second,
        "wait": state.wait_share,
        "pairs": state.pairs,
        "seconds": state.seconds,
        "steps": state.step,
        "best": [{"metric": m, "checkpoint": n} for m, n in state.best],
    }


def _rounds(
    recipe: Recipe,
    model: "Model",
    data: WeightedConcat,
    batches: Any,
    pairs: Sequence[Pair],
    base: str,
    quiet: bool,
    processes: Processes,
) -> Rounds:
    """Mining for this run; its tables and audits lie in RUN/mining."""
    assert recipe.mining is not None
    verifier = find_verifier(recipe.mining.verifier)
    return Rounds(
        model,
        data,
        batches,
        recipe.mining,
        Path(recipe.run.dir) / "mining",
        pairs=pairs,
        epochs=recipe.train.epochs,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        verifier=verifier,
        quiet=quiet,
        processes=processes,
        base=base,
    )


def _recipe(recipe: "Recipe | dict[str, Any] | str | Path", overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, str | Path):
        return load_recipe(recipe, overrides)
    if overrides:
        raise RecipeError("overrides go with a recipe file; change the mapping itself instead")
    return recipe if isinstance(recipe, Recipe) else parse(recipe)


def _claim(directory: Path, recipe: Recipe, resume: bool) -> None:
    """Write the resolved recipe and the environment; refuse a directory that holds another run."""
    text, path = dump(recipe), directory / "recipe.yaml"
    if path.exists() and (directory / "checkpoints").exists():  # else it stopped before its first checkpoint: start anew
        if not resume:
            raise TrainingError(f"{directory} holds a run already: add --resume to go on with it, or choose another run.dir")
        import yaml

        old = dump(parse(yaml.safe_load(path.read_text()), str(path)))  # keys that are newer than the run have their defaults
        changed = _changed(yaml.safe_load(old), yaml.safe_load(text))
        if changed:
            raise TrainingError(f"{path}: the run to resume has another {changed[0]}; use the same recipe, or another run.dir")
    write_text(path, text)
    write_json(directory / "environment.json", environment(recipe))


def _changed(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys that differ; where the run lies, how fast data are read and how weights are held may change."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [c for k in sorted({*old, *new}) for c in _changed(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new or path in ("run.dir", "data.workers", "data.cache", "train.shard") else [path]


def environment(recipe: Recipe) -> dict[str, Any]:
    """Versions, machine and seed, for whoever wants to see the same numbers again."""
    from importlib.metadata import version

    import torch

    names = ("mmtune", "torch", "transformers", "open_clip_torch", "accelerate", "numpy", "pillow", "soundfile")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": {n: version(n) for n in names} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(recipe.train.precision),
        "seed": recipe.train.seed,
        "command": sys.argv,
    }


def _objective(
    recipe: Recipe, model: "Model", data: WeightedConcat, pairs: Sequence[Pair], quiet: bool, processes: Processes
) -> Objective:
    """The recipe's objective, its teachers' outputs at hand."""
    return build_objective(
        recipe.objective,
        pairs,
        dim=model.dim,
        matryoshka=recipe.matryoshka.model_dump() if recipe.matryoshka else None,
        memory=recipe.memory.model_dump() if recipe.memory else None,
        teachers=build_teachers(recipe.teachers, data, pairs, quiet=quiet),
        seed=recipe.train.seed,
        processes=processes,
    )


def choose_pairs(recipe: Recipe, model: "Model", data: WeightedConcat) -> list[Pair]:
    """The recipe's pairs, or every pair that model and data share and that some row has. RecipeError names the pair."""
    both = [m for m in data.modalities if m in model.towers]
    if recipe.pairs is None:
        pairs = [(a, b) for i, a in enumerate(both) for b in both[i + 1 :] if (data.present[a] & data.present[b]).any()]
        if not pairs:
            raise RecipeError(
                f"pairs: the model has {list(model.towers)}, {data.spec} has {data.modalities}: no row has two of them"
            )
        return pairs
    for pair in recipe.pairs:
        for m in pair:
            modalities.get(m)
            if m not in both:
                raise RecipeError(
                    f"pairs: {list(pair)}: {m} is not in both: the model has {list(model.towers)}, the data {data.modalities}"
                )
    return [(a, b) for a, b in recipe.pairs]


def usable_rows(data: WeightedConcat, pairs: Sequence[Pair]) -> np.ndarray:
    """bool [N]: the rows that have both sides of some pair."""
    return np.any([data.present[a] & data.present[b] for a, b in pairs], axis=0)


def trained_modalities(pairs: Sequence[Pair]) -> list[str]:
    """The modalities of the pairs, in the table's order."""
    return sorted({m for pair in pairs for m in pair}, key=modalities.names().index)


def _named(pairs: Sequence[Pair]) -> str:
    return ", ".join(f"[{a}, {b}]" for a, b in pairs)


def augmentations(recipe: Recipe, trained: Sequence[str], data: WeightedConcat) -> dict[str, Any]:
    """{modality: (signal, rng) -> signal} of the recipe's `augment`; `mixup` draws its partners from `data`."""
    for m in recipe.augment:
        modalities.get(m)
        if m not in trained:
            raise RecipeError(f"augment.{m}: {m} is not trained here; the pairs train {', '.join(trained)}")
    return {m: augmentation(m, options, data) for m, options in recipe.augment.items() if options}


def _between(recipe: Recipe) -> Interpolate | None:
    """The recipe's `interpolate`, or None."""
    wanted = recipe.interpolate
    if wanted and not (recipe.data.val and recipe.data.general):
        raise RecipeError("interpolate: the coefficient is picked on data.val and data.general; name both")
    return wanted if isinstance(wanted, Interpolate) else Interpolate() if wanted else None


def _prepare(tuned: TunedModel, sets: Sequence["Data | WeightedConcat | None"], quiet: bool) -> Embed:
    """Say what learns, compute features of towers that do not; returns how to embed between epochs."""
    if not quiet:
        print("\n".join(tuned.summary()), file=sys.stderr)
    if tuned.features is None:
        return embed_data
    for data in sets:
        if data is not None:
            tuned.features.store(data, quiet)
    return tuned.features.embed


def _finish(
    tuned: TunedModel, between: Interpolate | None, validate: Any, directory: Path, recipe: Recipe, base_mark: str
) -> float | None:
    """A plain model again, on its chosen place between base and tuned; its adapters beside the artifact."""
    tuned.merge()
    chosen = None
    if between is not None:
        chosen = interpolate(tuned.model, tuned.start, validate, between, directory / "interpolation.json", recipe.train.metric)
    if any(t.how in LOW_RANK for t in tuned.towers.values()):
        save_adapters(tuned, directory / "adapters", recipe.model, base_mark, 1.0 if chosen is None else chosen)
    tuned.close()
    return chosen


def _validators(
    val: Data | None, general: Data | None, pairs: Sequence[Pair], metric: str, embed: Embed, processes: Processes
) -> Any:
    """Validation on the domain and, under names that begin with "general", on the slice that must not get worse; or None.
    Several processes embed a share each, the first one scores, all of them get its values."""
    if val is None:
        if general is not None:
            raise RecipeError("data.general: is scored beside data.val; name that too")
        return None
    domain = _validator(val, pairs, metric, embed, "data.val", processes)
    other = _validator(general, pairs, metric, embed, "data.general", processes) if general is not None else lambda model: {}
    return lambda model: processes.broadcast(domain(model) | {f"general {k}": v for k, v in other(model).items()})


def _validator(val: Data, pairs: Sequence[Pair], metric: str, embed: Embed, key: str, processes: Processes) -> Any:
    """model -> {"a->b metric": value, ..., "metric": their mean} over the trained directions."""
    metric_columns((1, 5, 10), [metric], "train.metric")  # RecipeError for an unknown metric
    wanted = [d for a, b in pairs for d in dict.fromkeys([direction(a, b), direction(b, a)])]

    def validate(model: "Model") -> dict[str, float]:
        shared = [m for m in trained_modalities(pairs) if m in val.modalities]
        vectors = embed(model, val, shared, processes=processes)
        if not processes.is_main_process:
            return {}
        directions = evaluate_vectors(vectors, metrics=[metric]).directions
        values = {}
        for d in wanted:
            if d in directions:
                values[f"{d} {metric}"] = directions[d].metrics[metric]
        if not values:
            raise RecipeError(f"{key}: {val.spec} has no row for the trained directions {', '.join(wanted)}")
        return values | {"metric": sum(values.values()) / len(values)}

    return validate
