"""The model card of a repository on the Hugging Face hub: metadata that the hub reads, and text for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.model.artifact.save import card

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from mmtune.model.dual_encoder import Model

METRICS = ("hit@1", "recall@10", "map", "ndcg@10")
PROVENANCE = (
    "base",
    "data",
    "data_fingerprint",
    "tune",
    "steps",
    "seed",
    "precision",
    "interpolated",
    "base_fingerprint",
    "mmtune",
)
"""Keys of an artifact's info that say how it was tuned, in the order of the card."""


@dataclass(frozen=True)
class CardFields:
    """What the user says about a model.

    license: identifier of the licence of the weights, as on the hub, e.g. "apache-2.0"
    language: ISO codes of the languages of the captions
    datasets: names of data sets on the hub that it was trained on
    training_data: sentences about the training data: what it shows, where it is from, its licence, who is in it
    """

    license: str | None = None
    language: Sequence[str] = ()
    datasets: Sequence[str] = ()
    training_data: str = ""


@dataclass
class CardSubject:
    """The model of a card.

    repo: "ORG/NAME"
    library: library that loads the repository, e.g. "mmtune"
    usage: Python code that embeds with it
    fingerprint: of the model
    metrics: the artifact's metrics.json
    info: the artifact's info
    """

    repo: str
    library: str
    usage: str
    fingerprint: str
    metrics: JsonObject = field(default_factory=dict)
    info: JsonObject = field(default_factory=dict)


def model_card(model: "Model", subject: CardSubject, fields: CardFields) -> str:
    """Return README.md with the hub's metadata (YAML) and the card's sections."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=_hub_name(subject.info.get("base")),
        datasets=list(fields.datasets) or None,
        eval_results=_results(subject),
        language=list(fields.language) or None,
        library_name=subject.library,
        license=fields.license,
        metrics=sorted({m for m in METRICS for d in _directions(subject) if m in d["metrics"]}) or None,
        model_name=subject.repo.rpartition("/")[2],
        pipeline_tag="feature-extraction",
        tags=["mmtune", "retrieval", "dual-encoder", *model.towers],
    )
    body = card(model, subject.fingerprint, subject.metrics, {}).split("\n## Use\n", 1)[0].split("\n", 1)[1]
    lines = ["---", data.to_yaml(), "---", "", f"# {subject.repo}", body.rstrip(), ""]
    lines += ["## Training data", "", fields.training_data or "Not described by the author.", ""]
    if tuned := [
        f"- {key}: {_shown(subject.info[key])}" for key in PROVENANCE if subject.info.get(key) not in (None, "", {}, [])
    ]:
        lines += ["## How it was tuned", "", *tuned, ""]
    lines += ["## Licence", "", fields.license or "Not stated by the author; ask before you use it.", ""]
    lines += ["## Use", "", "```python", subject.usage, "```", ""]
    return "\n".join(lines)


def _directions(subject: CardSubject) -> list[JsonObject]:
    return list(subject.metrics.get("directions", {}).values())


def _results(subject: CardSubject) -> "list[EvalResult] | None":
    """Return the measured table as the hub's EvalResult entries."""
    from huggingface_hub import EvalResult

    dataset = str(subject.info.get("val") or "validation")
    found: list[EvalResult] = []
    for name, values in subject.metrics.get("directions", {}).items():
        found += [
            EvalResult(
                task_type="retrieval",
                task_name=f"Retrieval {name}",
                dataset_type=dataset,
                dataset_name=f"{dataset} ({values['queries']} queries, {values['candidates']} candidates)",
                metric_type=metric,
                metric_name=f"{metric} {name}",
                metric_value=round(float(values["metrics"][metric]), 4),
            )
            for metric in METRICS
            if metric in values["metrics"]
        ]
    return found or None


def _hub_name(base: object) -> str | None:
    """Return ORG/NAME of the base model if it is on the hub."""
    name = str(base or "").partition(":")[2]
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


def _shown(value: object) -> str:
    return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
