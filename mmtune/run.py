"""Run a recipe from the data to the saved artifact. This module connects data, mining, training and evaluation."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.data.loader.batch_plan import BatchPlan, plan_batches
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.embedding.embed_rows import embed_data
from mmtune.embedding.feature_cache import share_features
from mmtune.evaluation.validation import Embed, Validate, build_validation
from mmtune.mining.given_negatives import GivenDraws, GivenNegatives, load_given, record_given
from mmtune.mining.mining_rounds import MiningRounds
from mmtune.mining.verifier import make_verifier
from mmtune.model import artifact
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes, init_processes, is_restarted
from mmtune.training.build_callbacks import build_callbacks
from mmtune.training.build_objective import build_objective
from mmtune.training.callbacks import Callback, CallbackContext
from mmtune.training.class_label_files import open_class_labels
from mmtune.training.class_labels import AnyClassLabels
from mmtune.training.cross_encoder_run import build_cross_encoder
from mmtune.training.epochs import EpochBatches, HardNegatives
from mmtune.training.finish import finish_model, save_run
from mmtune.training.fitted_heads import save_fitted_heads
from mmtune.training.head_initialisation import initialise_heads
from mmtune.training.loop import Trainer
from mmtune.training.objective import Objective
from mmtune.training.preflight import check_objective_data, check_rerank_batches
from mmtune.training.recipe_preflight import check_inputs, check_recipe, check_run_space, check_steps, teacher_modalities
from mmtune.training.retention_budget import build_retention
from mmtune.training.run_directory import claim_run_directory
from mmtune.training.step_threads import StepThreads
from mmtune.training.teacher_cache import build_teachers
from mmtune.training.train_result import TrainResult
from mmtune.training.training_inputs import TrainingInputs, build_loader, open_inputs
from mmtune.training.tuning.lp_ft import head_stage
from mmtune.training.tuning.tune import TunedModel, tune
from mmtune.training.tuning.tune_spec import parse_tune
from mmtune.training.unused_inputs import few_positives, unused_negatives, unused_scores
from mmtune.training.within_scores import within_score_lines

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def train(
    recipe: "Recipe | Mapping[str, object] | str | Path",
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train by a recipe and return the result: paths, scores and the fingerprint of the trained model.

    The run directory, recipe key `run.dir`, gets recipe.yaml, environment.json, metrics.jsonl, tensorboard/, checkpoints/ and
    artifact/ (the trained model), for losses on class labels of streamed data also classes/.

    recipe: a recipe file, a mapping with the same keys, or a `Recipe`
    overrides: "key.sub=value" strings that replace keys of a recipe file
    resume: continue an interrupted run from its last checkpoint, with the same result as without the interruption
    quiet: print no progress
    callbacks: objects whose methods are called during the run, in addition to those of the recipe (`run.callbacks`)

    Raises MmtuneError, e.g. if the recipe is invalid, or if the run directory contains a run and `resume` is False.

    Distributed training: start the same call with torchrun or accelerate. All processes must share the run directory. Each of
    them computes a part of every batch. Rank 0 writes the files; the other ranks return its result without the field `result`.
    """
    with init_processes() as processes:
        checked = Recipe.read(recipe, overrides)
        with build_callbacks(checked.run, callbacks).closing() as called:
            return run_recipe(checked, resume or is_restarted(), quiet or not processes.is_main_process, processes, called)


def run_recipe(
    recipe: Recipe, resume: bool, quiet: bool, processes: Processes, callbacks: Callback | None = None
) -> TrainResult:
    """Train by a validated recipe. All ranks of `processes` must call this function; the parameters are those of `train`."""
    directory = Path(recipe.run.dir)
    inputs = _checked_inputs(directory, recipe, resume, processes)
    context = CallbackContext(recipe, directory, inputs)
    cross = build_cross_encoder(recipe, inputs, processes, _print_unless(quiet))
    classes = {} if cross else open_class_labels(recipe, inputs, quiet, processes)
    with processes.main_process_first():
        objective = cross.objective if cross else _objective(recipe, inputs, classes, quiet, processes)
    with share_features():  # the initialisation of heads and the training on stored features compute them once
        initialise_heads(inputs.model, recipe.heads, inputs.data, inputs.pairs, recipe.train.seed, quiet, recipe.data.skip_bad)
        if processes.is_main_process:
            save_fitted_heads(recipe, inputs)
        retention = build_retention(recipe, inputs, processes)
        heads = _heads_first(recipe, inputs, resume, quiet, processes)
        interpolated = recipe.interpolation is not None
        tuned = tune(
            inputs.model,
            recipe.tune,
            inputs.trained,
            inputs.varying(recipe),
            recipe.train.seed,
            interpolated,
            heads,
            bool(cross),
        )
        if cross:
            cross.add_lr_shares(tuned, recipe.train.lr)
        embed = _keep_features(tuned, inputs, quiet)
    extended = cross.model.pair_preprocess if cross else None
    loader = build_loader(
        recipe, inputs, tuned, columns=objective.columns, processes=processes, extended=extended, class_labels=classes
    )
    build = functools.partial(build_validation, inputs.val, inputs.retention, inputs.pairs, recipe.train.metric, embed)
    validate: Validate | None = cross.validate if cross else build(processes, retention.budget)
    plan = _plan(recipe, inputs, objective, loader, resume, quiet, processes, callbacks, context)
    trainer = Trainer(
        cross.model if cross else inputs.model,
        objective,
        loader,
        plan.batches,
        recipe.train,
        directory,
        tuned=tuned,
        preservation=retention.preservation(recipe, inputs, tuned, processes),
        callbacks=callbacks,
        context=context,
        quiet=quiet,
        validate=plan.rounds.watch(validate) if plan.rounds and validate else validate,
        hard_negatives=plan.hard_negatives,
        processes=processes,
        threads=StepThreads(recipe.runtime.threads, processes, quiet),
    )
    if resume:
        trainer.resume()
    trainer.fit()
    if not processes.is_main_process:
        return TrainResult(**processes.broadcast())
    trainer.load_best()
    if cross:
        result = cross.save(trainer, tuned, recipe, inputs)
    else:
        validate = build(SINGLE_PROCESS, retention.budget)
        coefficient = finish_model(tuned, recipe, inputs, validate)
        result = save_run(trainer, tuned, recipe, inputs, coefficient)
    if callbacks is not None:
        callbacks.on_end(context, result)
    processes.broadcast(result.to_dict())
    return result


def _print_unless(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a line to standard error, or nothing if `quiet`."""
    return (lambda line: None) if quiet else functools.partial(print, file=sys.stderr, flush=True)


def _checked_inputs(directory: Path, recipe: Recipe, resume: bool, processes: Processes) -> TrainingInputs:
    """Claim the run directory, open data and model, and check the recipe with them before anything is computed."""
    with processes.main_process_first():
        if processes.is_main_process:
            claim_run_directory(directory, recipe, resume)
    check_recipe(recipe)
    inputs = open_inputs(recipe)
    check_inputs(recipe, inputs)
    return inputs


@dataclass(frozen=True)
class _Plan:
    """The batches of a run by row numbers, the mined rows that join them, and the mining rounds; all None for streamed data."""

    batches: EpochBatches | None = None
    hard_negatives: HardNegatives | None = None
    rounds: MiningRounds | None = None


def _plan(
    recipe: Recipe,
    inputs: TrainingInputs,
    objective: Objective,
    loader: Loader | StreamLoader,
    resume: bool,
    quiet: bool,
    processes: Processes,
    callbacks: Callback | None,
    context: CallbackContext,
) -> _Plan:
    """Plan the batches of indexed data, with given and mined negatives, and check the objective against them."""
    check_run_space(recipe, inputs)
    if not isinstance(loader, Loader):
        for line in objective.class_losses.notes:
            _print_unless(quiet)(line)
        return _Plan()
    given = load_given(inputs.indexed, recipe.data.negatives_files, inputs.pairs, recipe.data.negatives is not False)
    usable = inputs.usable & ~given.only_negatives(inputs.indexed) if given else inputs.usable
    batches = plan_batches(inputs.indexed, usable, recipe.train.batch_size, recipe.train.seed, recipe.data.batches)
    check_steps(recipe, len(batches(0)))
    mined = recipe.mining is not None or bool(given and given.pairs)
    check_objective_data(objective, inputs.indexed, loader.columns, batches(0), mined=mined)
    if recipe.cross_encoder:
        check_rerank_batches(inputs.pairs, inputs.indexed, batches(0), mined)
    rounds = None
    if recipe.mining is not None:
        rounds = MiningRounds(
            inputs.model,
            inputs.indexed,
            batches,
            recipe.mining,
            context.directory / "mining",
            pairs=inputs.pairs,
            epochs=recipe.train.epochs,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            verifier=make_verifier(recipe.mining.verifier),
            quiet=quiet,
            processes=processes,
            base_fingerprint=inputs.base_fingerprint,
            mined=functools.partial(callbacks.on_mining, context) if callbacks else None,
            judged=given.verdicts(inputs.indexed.ids) if given else (),
        )
    if not quiet:
        _print_unused(objective, inputs, given, batches)
    epochs: EpochBatches = rounds.plan if rounds else batches
    extra: HardNegatives | None = rounds.extra if rounds else None
    if given is not None:
        draws = GivenDraws(given, inputs.indexed, epochs, recipe.data.negatives_per_query, recipe.train.seed, extra)
        epochs, extra = draws.plan, draws.extra
        with processes.main_process_first():
            if processes.is_main_process:
                record_given(context.directory / "negatives.json", given, resume)
    return _Plan(epochs, extra, rounds)


def _objective(
    recipe: Recipe, inputs: TrainingInputs, classes: Mapping[str, AnyClassLabels], quiet: bool, processes: Processes
) -> Objective:
    """Build the recipe's objective. Scores and embeddings of its teachers are computed first, or read if they are stored."""
    return build_objective(
        recipe.objective,
        inputs.pairs,
        dim=inputs.model.dim,
        matryoshka=recipe.matryoshka,
        memory=recipe.memory,
        teachers=build_teachers(
            recipe.teachers, inputs.indexed, inputs.pairs, quiet=quiet, needed=teacher_modalities(recipe, inputs.pairs)
        )
        if recipe.teachers
        else {},
        seed=recipe.train.seed,
        processes=processes,
        data=None if inputs.is_streamed else inputs.indexed,
        class_labels=classes,
    )


def _print_unused(objective: Objective, inputs: TrainingInputs, given: GivenNegatives | None, batches: BatchPlan) -> None:
    """Print how many given negatives are used, and what of the data the objective does not use."""
    lines = [
        *batches.notes,
        *objective.class_losses.notes,
        *unused_scores(objective, inputs.indexed),
        *within_score_lines(list(objective.within_scores), inputs.indexed, batches(0)),
        *few_positives(objective, inputs.indexed, batches(0)),
    ]
    if given is not None:
        lines += [*given.lines(), *unused_negatives(objective, given.counts)]
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr, flush=True)


def _heads_first(recipe: Recipe, inputs: TrainingInputs, resume: bool, quiet: bool, processes: Processes) -> "Model | None":
    """Train only the heads first (LP-FT) and return that model; None if no tower has `head_first` in the recipe's `tune`.

    This is a complete run in the directory head_first/ inside the run directory.
    """
    stage = head_stage(recipe, parse_tune(recipe.tune, list(inputs.model.towers), inputs.trained))
    if stage is None:
        return None
    directory = Path(stage.run.dir)
    if resume and (directory / "artifact" / "mmtune.json").is_file():  # the run of the heads is finished already
        with processes.main_process_first():
            if processes.is_main_process:
                claim_run_directory(directory, stage, True)  # raises if that run had another recipe
    else:
        run_recipe(stage, resume, quiet, processes)
    return artifact.load(directory / "artifact")


def _keep_features(tuned: TunedModel, inputs: TrainingInputs, quiet: bool) -> Embed:
    """Print what is trained, and compute and store the features of frozen towers, so that they are not computed in every epoch.

    Returns the function that embeds data for validation; it uses the stored features if there are any.
    """
    if not quiet:
        print("\n".join(tuned.summary()), file=sys.stderr)
    if tuned.features is None:
        return embed_data
    for data in (inputs.indexed, inputs.val, inputs.retention):
        if data is not None:
            tuned.features.store(data, quiet)
    return tuned.features.embed
