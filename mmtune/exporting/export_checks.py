"""Compare an export with its model: vectors, retrieval, speed."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import ModelError
from mmtune.model.encode import encode_values

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.model.dual_encoder import Model

SPEED_ITEMS, SPEED_SECONDS = 16, 1.0


def vector_differences(model: "Model", exported: "Model", signals: Mapping[str, list[object]]) -> dict[str, float]:
    """Return the largest difference of a component between the vectors of model and export, for each modality."""
    found = {}
    for m in exported.towers:
        if m in signals:
            ours, theirs = (encode_values(x, m, signals[m]) for x in (model, exported))
            found[m] = float(np.abs(ours - theirs).max())
    return found


def check_differences(differences: Mapping[str, float], tolerance: float, format: str) -> None:
    """Raise ModelError if vectors differ by more than the tolerance, or are not numbers."""
    for m, value in differences.items():
        if not value <= tolerance:
            raise ModelError(
                f"export to {format}: the vectors of {m} differ by {value:.1e} from the model's, more than {tolerance:g}; nothing "
                "was written (--no-check writes it all the same)"
            )


def recall_of_both(model: "Model", exported: "Model", data: "DataLike", quiet: bool) -> dict[str, dict[str, float]]:
    """Return recall@10 of model and export on data, for every direction between modalities that the export has."""
    from mmtune.evaluation.evaluate_model import evaluate

    names = list(exported.towers)
    results = []
    for x in (model, exported):
        shared = [m for m in names if m in getattr(data, "modalities", names)]
        results.append(evaluate(x, data, modalities=shared, within=len(shared) < 2, quiet=quiet, allow_trained=True).to_dict())
    ours, theirs = (r["directions"] for r in results)
    return {d: {"model": ours[d]["metrics"]["recall@10"], "export": theirs[d]["metrics"]["recall@10"]} for d in theirs}


def largest_drop(recall: Mapping[str, Mapping[str, float]]) -> float:
    """Return by how much recall@10 falls in the direction where it falls most."""
    return max((r["model"] - r["export"] for r in recall.values()), default=0.0)


def items_a_second(model: "Model", exported: "Model", signals: Mapping[str, list[object]]) -> dict[str, dict[str, float]]:
    """Return the speed of both in batches of SPEED_ITEMS, preprocessing not counted, each for at least SPEED_SECONDS."""
    return {
        m: {"torch": _speed(model, m, signals[m]), "export": _speed(exported, m, signals[m])}
        for m in exported.towers
        if m in signals
    }


def _speed(model: "Model", modality: str, signals: list[object]) -> float:
    import torch

    preprocess = model.towers[modality].preprocess
    items = [preprocess(signals[0])] * SPEED_ITEMS
    inputs = preprocess.collate(items)
    with torch.inference_mode():
        model.encode_inputs(modality, inputs)
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < SPEED_SECONDS:
            model.encode_inputs(modality, inputs)
            done += SPEED_ITEMS
        return done / (time.perf_counter() - begin)
