"""Writes adapters to disk: what LoRA training changed, small, and readable only on the base that it was trained on.

DIR/adapters.safetensors holds `NAME::a` and `NAME::b` of every adapted weight, and whole the other parameters that learned
(heads, ...); DIR/adapters.json the base, its fingerprint, and how to apply them. Beside them lie the same adapters in peft's own
format where it can hold them (see `model.artifact.peft_format`). `model.artifact.adapters` reads them, without
peft.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmtune.contracts import JsonObject
from mmtune.model.artifact.adapters import FORMAT, INFO, MANIFEST, WEIGHTS
from mmtune.model.artifact.load import load_adapters
from mmtune.model.artifact.low_rank import LowRankDelta
from mmtune.model.artifact.peft_format import write_peft_adapter
from mmtune.model.artifact.trained_rows import TRAINED
from mmtune.runtime.files import atomic_dir, write_bytes, write_json

if TYPE_CHECKING:
    from mmtune.training.tuning.tune import TunedModel

__all__ = ["load_adapters", "save_adapters", "save_provenance"]


def save_adapters(
    tuned: "TunedModel",
    directory: str | Path,
    base: str | Mapping[str, str],
    base_fingerprint: str,
    coefficient: float = 1.0,
) -> None:
    """Write the adapters of a merged model. base: the recipe's MODEL; coefficient: of the interpolation between base (0) and
    tuned model (1)."""
    from safetensors.torch import save_file

    model = tuned.model
    state = model.state_dict()
    tensors = {n: state[n].detach().cpu().contiguous() for n in tuned.learned}
    for adapter in tuned.adapters:
        tensors |= {f"{adapter.name}::a": adapter.a.contiguous(), f"{adapter.name}::b": adapter.b.contiguous()}
    document = {
        "format": FORMAT,
        "base": base,
        "base_fingerprint": base_fingerprint,
        "fingerprint": model.fingerprint,
        "factors": {adapter.name: adapter.factor * coefficient for adapter in tuned.adapters},
        "rounded": [adapter.name for adapter in tuned.adapters if _is_4bit(tuned, adapter)],
        "heads": list(model.heads),
        "own_scales": list(model.own_scales),
        "settings": model.settings,
        "tune": {m: t.model_dump(exclude_none=True) for m, t in tuned.towers.items()},
    }
    scaled = [LowRankDelta(d.name, d.a, d.b, d.factor * coefficient) for d in tuned.adapters]
    with atomic_dir(directory) as tmp:
        save_file(tensors, tmp / WEIGHTS)
        document["peft"] = write_peft_adapter(tmp, model, scaled, base, tuned.learned)
        write_json(tmp / MANIFEST, document)


def save_provenance(directory: Path, artifact: Path, info: JsonObject) -> None:
    """Write beside the adapters what the run's artifact records: where it comes from, and the rows it was trained on."""
    write_json(directory / INFO, info)
    write_bytes(directory / TRAINED, (artifact / TRAINED).read_bytes())


def _is_4bit(tuned: "TunedModel", adapter: LowRankDelta) -> bool:
    """Whether this weight is a linear layer of a tower that was held in 4 bits."""
    owner, _, name = adapter.name.rpartition(".")
    module = tuned.model.get_submodule(owner)
    tunings = [
        t for m, t in tuned.towers.items() if any(module is x for top in tuned.model.towers[m].modules for x in top.modules())
    ]
    return name == "weight" and isinstance(module, torch.nn.Linear) and any(t.how == "qlora" for t in tunings)
