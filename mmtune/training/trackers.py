"""Experiment trackers through accelerate: TensorBoard, Weights & Biases, MLflow and trackio.

They get the values of metrics.jsonl, the recipe as configuration, figures, and pictures. Each stores where its own environment variables
say (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR, ...); TensorBoard writes to RUN/tensorboard. A resumed run continues the
same run of the tracker, whose id is kept in RUN/trackers.json.
"""

import importlib.util
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import MissingExtra
from mmtune.modalities.picture_strip import Picture, log_pictures
from mmtune.recipe.run_block import RunConfig
from mmtune.relevance.items import unique_items
from mmtune.runtime.files import read_json, write_json
from mmtune.training.callbacks import Callback, CallbackContext
from mmtune.training.metrics_log import ValidationMetrics
from mmtune.training.retrieval_pictures import mined_pictures, retrieval_pictures
from mmtune.training.validation_figures import validation_figures

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from mmtune.mining.mining_result import MiningResult
    from mmtune.recipe.recipe import Recipe

IDS_FILE = "trackers.json"


class Trackers(Callback):
    """Sends the metrics of a run to the trackers of the recipe.

    Raises MissingExtra, when it is created, for a tracker whose library is not installed.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.trackers: list[GeneralTracker] = []
        for name in config.trackers:
            if importlib.util.find_spec(name) is None:
                raise MissingExtra(f'run.trackers: {name} is not installed: pip install "mmtune[trackers]" (or leave it out)')

    def on_start(self, context: CallbackContext) -> None:
        """Start each tracker. A new run also stores the recipe."""
        from accelerate import PartialState

        PartialState()  # accelerate's trackers log through it
        path = context.directory / IDS_FILE
        ids = read_json(path) if context.step and path.exists() else {}
        for name in self.config.trackers:
            tracker = _tracker(name, self.config, context, ids)
            tracker.start()
            self.trackers.append(tracker)
            if name == "mlflow":
                ids[name] = tracker.tracker.info.run_id
            if name != "tensorboard" and not context.step:  # TensorBoard would make a run of its own of them
                tracker.store_init_configuration(_flat(context.recipe))
        if ids:
            write_json(path, ids)

    def on_step(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._log(metrics, context.step)

    def on_validation(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        """Log the scores of a validation, figures, and pictures of the best results of some queries."""
        self._log(ValidationMetrics(metrics).to_dict(), context.step)
        data, pairs = context.inputs.val, context.inputs.pairs
        if data is None or not (self.config.pictures or self.config.figures) or not self.trackers:
            return
        wanted = [m for m in data.modalities if any(m in p for p in pairs)]
        vectors = embed_data(context.model, data, wanted)
        items = {m: unique_items(m, e) for m, e in vectors.items()}
        if self.config.figures:
            drawn = validation_figures(vectors, items, pairs, context.directory / "metrics.jsonl")
            self._log_pictures({name: [figure] for name, figure in drawn.items()}, context.step)
        if self.config.pictures:
            self._log_pictures(retrieval_pictures(items, data, pairs, self.config.pictures), context.step)

    def on_mining(self, context: CallbackContext, result: "MiningResult") -> None:
        """Log the number of mined negatives, and pictures of some queries with theirs."""
        counts = {f"mined {name}": float(d["mined"]) for name, d in result.document["directions"].items()}
        self._log(counts, context.step)
        if self.config.pictures and result.mined:
            self._log_pictures(mined_pictures(result.table, context.inputs.indexed, self.config.pictures), context.step)

    def close(self) -> None:
        """Finish each tracker."""
        trackers, self.trackers = self.trackers, []
        for tracker in trackers:
            tracker.finish()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log({_name(tracker.name, k): float(v) for k, v in values.items()}, step=step)

    def _log_pictures(self, pictures: Mapping[str, Sequence[Picture]], step: int) -> None:
        for tracker in self.trackers:
            for key, some in pictures.items():
                log_pictures(tracker, _name(tracker.name, key), some, step)


def _tracker(name: str, config: RunConfig, context: CallbackContext, ids: dict[str, str]) -> "GeneralTracker":
    """Create a tracker of accelerate, which is started later. ids: {tracker: id of its run}; changed for a new run of wandb."""
    from accelerate import tracking

    run_name = config.name or Path(config.dir).name
    if name == "tensorboard":
        return tracking.TensorBoardTracker("tensorboard", context.directory, purge_step=context.step + 1)
    if name == "wandb":
        ids.setdefault(name, uuid.uuid4().hex[:12])
        options = {"dir": str(context.directory), "id": ids[name], "resume": "allow"}
        return tracking.WandBTracker(config.project, name=run_name, **options)
    if name == "mlflow":
        return tracking.MLflowTracker(config.project, run_id=ids.get(name), run_name=run_name)
    ids.setdefault(name, f"{run_name}-{uuid.uuid4().hex[:6]}")
    return tracking.TrackioTracker(config.project, name=ids[name], resume="allow")


def _name(tracker: str, key: str) -> str:
    """The name of a metric in a tracker: "val text->image map" is "val/text->image/map". MLflow allows fewer characters."""
    name = key.replace(" ", "/")
    return re.sub(r"[^\w\-./: ]", "_", name.replace("->", "_to_").replace("@", "_at_")) if tracker == "mlflow" else name


def _flat(recipe: "Recipe") -> dict[str, str | int | float | bool]:
    """{dotted recipe key: value}; what is no plain value is a string."""
    flat: dict[str, str | int | float | bool] = {}

    def add(key: str, value: object) -> None:
        if isinstance(value, Mapping) and value:
            for k, v in value.items():
                add(f"{key}.{k}" if key else str(k), v)
        else:
            flat[key] = value if isinstance(value, str | int | float | bool) else str(value)

    add("", recipe.model_dump(mode="json"))
    return flat
