"""Predictors that are stored in an artifact: ARTIFACT/predictors/TASK.MODALITY.safetensors, and one for each machine.

The tensor "vectors" holds the references and "known" the known anomalies; the metadata holds their ids and classes, the options and the
threshold as JSON. Scorers of anomalies are stored by name and fitted anew when they are read. A stored predictor belongs to one
fingerprint, so that its vectors are never compared with those of another model.
"""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import ModelError, first_line
from mmtune.evaluation.tasks.anomaly_scorers import SCORERS
from mmtune.model.artifact.format import MANIFEST, PREDICTORS
from mmtune.prediction.alarm_threshold import AlarmThreshold
from mmtune.prediction.predictors import PREDICTORS as KINDS
from mmtune.prediction.predictors import AnomalyPredictor, Predictor, ZeroShotPredictor
from mmtune.runtime.files import write_bytes
from mmtune.runtime.format_number import check_format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmtune.model.dual_encoder import Model

FORMAT = 2
"""The newest format number of a stored predictor; one without it is of format 1.

Format 2 has a scorer of anomalies, with its options. It is written only for others than the distance to the nearest references.
"""
OF_ANOMALY = ("scorer", "balance", "domains", "known_ids")
"""Fields of an `AnomalyPredictor` that are stored by name."""


def artifact_of(model: "Model") -> Path | None:
    """Return the artifact directory that a model was loaded from, or None."""
    source = model.info.get("source")
    return Path(source) if isinstance(source, str) and (Path(source) / MANIFEST).is_file() else None


def check_saved(model: "Model") -> Path:
    """Return the artifact directory of a model. Raises ModelError if it does not come from an artifact."""
    directory = artifact_of(model)
    if directory is None:
        raise ModelError(
            f"--save: {model.info.get('source')} is no artifact, so there is nowhere to store references; use the artifact of a run, or save "
            "the model as one (Python: mmtune.load(MODEL).save(DIR))"
        )
    return directory


def save_predictors(model: "Model", predictors: "Mapping[str, Predictor]", machine: str | None = None) -> Path:
    """Store predictors, by modality, in the model's artifact; earlier ones of the same task, modality and machine are replaced.

    machine: "COLUMN=VALUE" if the references are those of one machine

    Returns their directory. Raises ModelError if the model does not come from an artifact, or for a scorer that is not registered.
    """
    from safetensors.numpy import save

    directory = check_saved(model)
    for m, predictor in predictors.items():
        if isinstance(predictor, AnomalyPredictor) and predictor.scorer not in SCORERS:
            raise ModelError(
                f"--save: the scorer {predictor.scorer!r} is stored by name; register it first (mmtune.register_anomaly_scorer)"
            )
        threshold = None if predictor.threshold is None else predictor.threshold.to_dict()
        document = {
            "format": 1,
            "fingerprint": model.fingerprint,
            "ids": predictor.ids,
            "classes": predictor.classes,
            "neighbours": predictor.neighbours,
            "threshold": threshold,
            "machine": machine,
        }
        if isinstance(predictor, ZeroShotPredictor):
            document["logit_scale"] = predictor.logit_scale
        tensors = {"vectors": predictor.vectors.astype("float32")}
        if isinstance(predictor, AnomalyPredictor):
            if not predictor.is_plain:
                document |= {"format": FORMAT, **{name: getattr(predictor, name) for name in OF_ANOMALY}}
            if predictor.known_vectors is not None:
                tensors["known"] = predictor.known_vectors.astype("float32")
        data = save(tensors, metadata={"predictor": json.dumps(document)})
        write_bytes(_path(directory, predictor.task, m, machine), data)
    return directory / PREDICTORS


def load_predictors(model: "Model", task: str, names: "Sequence[str]", machine: str | None = None) -> dict[str, Predictor]:
    """Read the stored predictors of a task, and of a machine if one is named, for the modalities `names`; {} if there are none.

    Raises ModelError if they belong to another fingerprint, or if a file is damaged.
    """
    directory = artifact_of(model)
    paths = {m: _path(directory, task, m, machine) for m in names} if directory else {}
    return {m: _read(path, task, model.fingerprint) for m, path in paths.items() if path.is_file()}


def _path(directory: Path, task: str, modality: str, machine: str | None) -> Path:
    of_machine = "" if machine is None else f".{hashlib.sha256(machine.encode()).hexdigest()[:12]}"
    return directory / PREDICTORS / f"{task}.{modality}{of_machine}.safetensors"


def _read(path: Path, task: str, fingerprint: str) -> Predictor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            document, vectors = json.loads(f.metadata()["predictor"]), f.get_tensor("vectors")
            known = {"known_vectors": f.get_tensor("known")} if "known" in f.keys() else {}  # noqa: SIM118 (no mapping)
        check_format(document.pop("format", None), FORMAT, path, ModelError, missing=1)
        stored, threshold = document.pop("fingerprint"), document.pop("threshold")
        document.pop("machine", None)
        if threshold is not None:
            threshold = AlarmThreshold(**{k.name: threshold[k.name] for k in fields(AlarmThreshold) if k.name in threshold})
            (low, high), found = threshold.interval, threshold.detection_interval
            threshold = replace(threshold, interval=(low, high), detection_interval=found and (found[0], found[1]))
        predictor = KINDS[task](**document, **known, vectors=vectors, threshold=threshold)
    except (SafetensorError, KeyError, TypeError, ValueError) as e:
        raise ModelError(f"{path}: damaged ({first_line(e)}); store it again with --save") from None
    if stored != fingerprint:
        raise ModelError(
            f"{path}: belongs to the model {stored[:16]}, this one is {fingerprint[:16]} (other weights, prompts or dimensions); "
            "store it again with --save"
        )
    if isinstance(predictor, AnomalyPredictor) and predictor.scorer not in SCORERS:  # using it would import code
        raise ModelError(
            f"{path}: its scorer {predictor.scorer!r} is not registered; if you trust its code, call mmtune.register_anomaly_scorer first, "
            "or give the references again (--reference)"
        )
    return predictor
