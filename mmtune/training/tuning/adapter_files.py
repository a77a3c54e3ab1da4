"""Save LoRA adapters and the other parameters that were trained. They are small, and valid only for their base model.

DIR/adapters.safetensors contains the low-rank matrices `NAME::a` and `NAME::b` of every adapted weight. The other trained
parameters (heads, ...) are in it as whole tensors. DIR/adapters.json names the base model and its fingerprint, and says
how to apply the adapters. If peft's format can represent the adapters, they are saved in this format as well (see
`model.artifact.peft_format`). `model.artifact.adapters` loads them and does not need peft.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune.contracts import JsonObject
from mmtune.model.artifact.adapters import FORMAT, INFO, MANIFEST, WEIGHTS
from mmtune.model.artifact.load import load_adapters
from mmtune.model.artifact.low_rank import LowRankDelta
from mmtune.model.artifact.peft_format import write_peft_adapter
from mmtune.model.artifact.trained_rows import TRAINED
from mmtune.runtime.files import atomic_dir, write_bytes, write_json

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.tuning.tune import TunedModel

__all__ = ["load_adapters", "save_adapters", "save_heads", "save_provenance"]


def save_adapters(
    tuned: "TunedModel",
    directory: str | Path,
    base: str | Mapping[str, str],
    base_fingerprint: str,
    coefficient: float = 1.0,
) -> None:
    """Write the adapters of a merged model.

    base: the base model, as the recipe's `model` names it
    coefficient: interpolation coefficient between base (0) and tuned model (1); it scales the adapters
    """
    from safetensors.torch import save_file

    model = tuned.model
    state = model.state_dict()
    tensors = {n: state[n].detach().cpu().contiguous() for n in tuned.learned}
    for adapter in tuned.adapters:
        tensors |= {f"{adapter.name}::a": adapter.a.contiguous(), f"{adapter.name}::b": adapter.b.contiguous()}
    document = _document(model, base, base_fingerprint) | {
        "factors": {adapter.name: adapter.scaling * coefficient for adapter in tuned.adapters},
        "rounded": [adapter.name for adapter in tuned.adapters if _is_4bit(tuned, adapter)],
        "tune": {m: t.model_dump(exclude_none=True) for m, t in tuned.towers.items()},
    }
    scaled = [LowRankDelta(d.name, d.a, d.b, d.scaling * coefficient) for d in tuned.adapters]
    with atomic_dir(directory) as tmp:
        save_file(tensors, tmp / WEIGHTS)
        document["peft"] = write_peft_adapter(tmp, model, scaled, base, tuned.learned)
        write_json(tmp / MANIFEST, document)


def save_heads(
    model: "Model",
    directory: str | Path,
    base: str | Mapping[str, str],
    base_fingerprint: str,
    info: JsonObject,
    trained_on: Mapping[str, np.ndarray],
) -> None:
    """Write only the heads of a model, as an adapters directory without low-rank matrices.

    base: the base model, as the recipe's `model` names it
    info, trained_on: as in `artifact.save`
    """
    from safetensors.numpy import save
    from safetensors.torch import save_file

    heads = {n: v.detach().cpu().contiguous() for n, v in model.state_dict().items() if n.startswith("heads.")}
    with atomic_dir(directory) as tmp:
        save_file(heads, tmp / WEIGHTS)
        write_json(tmp / MANIFEST, _document(model, base, base_fingerprint))
        write_json(tmp / INFO, info)
        write_bytes(tmp / TRAINED, save(dict(trained_on)))


def _document(model: "Model", base: str | Mapping[str, str], base_fingerprint: str) -> JsonObject:
    """The manifest of a directory without low-rank matrices."""
    return {
        "format": FORMAT,
        "base": base,
        "base_fingerprint": base_fingerprint,
        "fingerprint": model.fingerprint,
        "factors": {},
        "rounded": [],
        "heads": list(model.heads),
        "head_kinds": {m: kind.to_json() for m, kind in model.head_kinds.items()},
        "own_scales": list(model.own_scales),
        "settings": model.settings,
    }


def save_provenance(directory: Path, artifact: Path, info: JsonObject) -> None:
    """Write provenance beside the adapters: the artifact's info, and a record of the rows that were trained on."""
    write_json(directory / INFO, info)
    write_bytes(directory / TRAINED, (artifact / TRAINED).read_bytes())


def _is_4bit(tuned: "TunedModel", adapter: LowRankDelta) -> bool:
    """Whether the adapted weight is a linear layer of a tower that was trained with 4-bit weights (qlora)."""
    owner, _, name = adapter.name.rpartition(".")
    module = tuned.model.get_submodule(owner)
    tunings = [
        t for m, t in tuned.towers.items() if any(module is x for top in tuned.model.towers[m].modules for x in top.modules())
    ]
    return name == "weight" and isinstance(module, torch.nn.Linear) and any(t.how == "qlora" for t in tunings)
