"""Write a model as an artifact directory: whole, or not at all."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError
from mmtune.model.artifact.format import MANIFEST, PARTS, WEIGHTS, Manifest
from mmtune.model.artifact.trained_rows import TRAINED, union, with_row_counts
from mmtune.model.artifact.trained_rows import trained_on as known_rows
from mmtune.model.prompts import has_query_prompt
from mmtune.runtime.files import atomic_dir, write_bytes, write_json, write_text
from mmtune.runtime.version import __version__

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def save(
    model: "Model",
    directory: str | Path,
    *,
    metrics: Mapping[str, object] | None = None,
    info: Mapping[str, object] | None = None,
    trained_on: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Write the artifact and return its fingerprint. An earlier artifact at `directory` is replaced.

    metrics: for metrics.json and the model card; info: base, recipe, data, ..., for the manifest and the card, default: that of
    the loaded model; trained_on: int64 labels of the training rows by key (id and modalities; one label a row), for trained_on.safetensors, so
    that an evaluation on training rows is refused (those of the artifact that the model was loaded from are kept). Raises
    ModelError for a directory that holds anything but an artifact.
    """
    from safetensors.numpy import save as dump
    from safetensors.torch import save_model

    directory = Path(directory)
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise ModelError(f"{directory}: holds files that are not an artifact's; save into a new directory")
    was_training = model.training
    model.eval()
    rows = union([with_row_counts(trained_on) if trained_on else None, known_rows(model)])
    if info is None:
        info = {k: v for k, v in model.info.items() if k != "source"}
    noted: JsonObject = {**info, "mmtune": __version__}
    mark = model.fingerprint
    with atomic_dir(directory) as tmp:
        save_model(model, str(tmp / WEIGHTS))
        files = model.files()
        for name, data in files.items():
            write_bytes(tmp / PARTS / name, data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        write_json(tmp / MANIFEST, Manifest(mark, model.layout(), noted, hashes).to_json())
        write_json(tmp / "metrics.json", dict(metrics or {}))
        if rows:
            write_bytes(tmp / TRAINED, dump(rows))
        write_text(tmp / "README.md", card(model, mark, dict(metrics or {}), noted))
    model.train(was_training)
    return mark


def card(model: "Model", mark: str, metrics: JsonObject, info: JsonObject) -> str:
    """The model card in Markdown."""
    lines = ["# mmtune model", "", f"- fingerprint: `{mark}` (vectors of another fingerprint are never comparable)"]
    lines += [
        f"- towers: {', '.join(f'{m} ({t.dim})' for m, t in model.towers.items())}",
        f"- shared space: {model.dim} dimensions, cosine"
        + (f" (of the towers' {model.width})" if model.dim < model.width else ""),
    ]
    if prefixes := ", ".join(str(d) for d in info.get("matryoshka", []) if d < model.dim):
        lines.append(f'- prefixes that were trained: {prefixes} (`mmtune.load("THIS_DIRECTORY", dim=N)`)')
    lines += [
        f"- prompt of {m}, {r}: {' | '.join(f'`{t}`' for t in ts)}" for m, x in model.prompts.items() for r, ts in x.items()
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
    lines += [f"vectors = model.encode({m}=[...])" for m in model.towers]
    lines += [f'queries = model.encode({m}=[...], role="query")' for m in model.towers if has_query_prompt(model.prompts, m)]
    lines += ["```", ""]
    return "\n".join(lines)
