"""Save a model as an artifact directory. The directory is written atomically: either completely or not at all."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError
from mmtune.model.artifact.format import MANIFEST, PARTS, PREDICTORS, WEIGHTS, Manifest, is_system_file
from mmtune.model.artifact.trained_rows import TRAINED, union, with_row_counts
from mmtune.model.artifact.trained_rows import trained_on as known_rows
from mmtune.model.prompts import has_query_prompt
from mmtune.runtime.files import atomic_dir, write_bytes, write_json, write_text
from mmtune.runtime.version import __version__

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

METRICS, CARD = "metrics.json", "README.md"


def save(
    model: "Model",
    directory: str | Path,
    *,
    metrics: Mapping[str, object] | None = None,
    info: Mapping[str, object] | None = None,
    trained_on: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Save an artifact and return its fingerprint.

    model: the model
    directory: where to save it; an existing artifact is replaced
    metrics: evaluation results for metrics.json and the model card
    info: facts about the model (base, recipe, data, ...) for the manifest and the model card; default: those of the loaded
        model
    trained_on: labels of the training rows, {"id" or a modality: int64 labels, one a row}. They are stored in
        trained_on.safetensors, so that evaluation can detect training rows. Those of the artifact that the model was loaded
        from are kept, too.

    Raises ModelError if `directory` contains anything but an artifact.
    """
    from safetensors.numpy import save as dump
    from safetensors.torch import save_model

    directory = Path(directory)
    refuse_other_files(directory)
    was_training = model.training
    model.eval()
    rows = union([with_row_counts(trained_on) if trained_on else None, known_rows(model)])
    if info is None:
        info = {k: v for k, v in model.info.items() if k != "source"}
    stored_info: JsonObject = {**info, "mmtune": __version__}
    fingerprint = model.fingerprint
    with atomic_dir(directory) as tmp:
        save_model(model, str(tmp / WEIGHTS))
        files = model.files()
        for name, data in files.items():
            write_bytes(tmp / PARTS / name, data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        write_json(tmp / MANIFEST, Manifest(fingerprint, model.layout(), stored_info, hashes).to_json())
        write_json(tmp / METRICS, dict(metrics or {}))
        if rows:
            write_bytes(tmp / TRAINED, dump(rows))
        write_text(tmp / CARD, card(model, fingerprint, dict(metrics or {}), stored_info))
    model.train(was_training)
    return fingerprint


def refuse_other_files(directory: Path) -> None:
    """Raise ModelError if saving an artifact at `directory` would delete anything but an earlier artifact's own files."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ModelError(f"{directory}: this is a file, not a directory; save into a new or empty directory")
    own = {MANIFEST, WEIGHTS, PARTS, PREDICTORS, TRAINED, METRICS, CARD} if (directory / MANIFEST).is_file() else set()
    others = sorted(p.name for p in directory.iterdir() if p.name not in own and not is_system_file(p.name))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ModelError(
            f"{directory}: contains files that are not an artifact's ({others[0]}{more}); save into a new or empty directory"
        )


def card(model: "Model", fingerprint: str, metrics: JsonObject, info: JsonObject) -> str:
    """Return the model card in Markdown."""
    lines = [
        "# mmtune model",
        "",
        f"- fingerprint: `{fingerprint}` (embeddings are comparable only if they have the same fingerprint)",
    ]
    lines += [
        f"- towers: {', '.join(f'{m} ({t.dim})' for m, t in model.towers.items())}",
        f"- shared space: {model.dim} dimensions, cosine similarity"
        + (f" (truncated from {model.width} dimensions)" if model.dim < model.width else ""),
    ]
    if prefixes := ", ".join(str(d) for d in info.get("matryoshka", []) if d < model.dim):
        lines.append(
            f'- trained for truncation (Matryoshka) to: {prefixes} dimensions (`mmtune.load("THIS_DIRECTORY", dim=N)`)'
        )
    lines += [
        f"- prompt for {m}, role {r}: {' | '.join(f'`{t}`' for t in ts)}"
        for m, x in model.prompts.items()
        for r, ts in x.items()
    ]
    lines += [f"- {key}: {value}" for key, value in info.items() if isinstance(value, str | int | float)]
    rows = [(d, v["queries"], v["candidates"], v["metrics"]) for d, v in metrics.get("directions", {}).items()]
    if rows:
        lines += [
            "",
            "## Validation",
            "",
            "| direction | queries | candidates | hit@1 | recall@10 | MAP | nDCG@10 |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, queries, candidates, m in rows:
            values = " | ".join(f"{m[k]:.4f}" for k in ("hit@1", "recall@10", "map", "ndcg@10"))
            lines.append(f"| {name} | {queries} | {candidates} | {values} |")
    lines += ["", "## Use", "", "```python", "import mmtune", 'model = mmtune.load("THIS_DIRECTORY")']
    lines += [f"embeddings = model.encode({m}=[...])" for m in model.towers]
    lines += [f'queries = model.encode({m}=[...], role="query")' for m in model.towers if has_query_prompt(model.prompts, m)]
    lines += ["```", ""]
    return "\n".join(lines)
