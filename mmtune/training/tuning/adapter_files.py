"""Adapters on disk: what LoRA training changed, small, and readable only on the base it was trained on.

DIR/adapters.safetensors holds `NAME::a` and `NAME::b` of every adapted weight, and whole what else learned (heads, ...);
DIR/adapters.json the base, its fingerprint, and what to do. No library but ours is needed to put them back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmtune.model.artifact.adapters import FORMAT, INFO, MANIFEST, WEIGHTS, load_adapters
from mmtune.model.artifact.low_rank import Low
from mmtune.model.artifact.trained_rows import TRAINED
from mmtune.runtime.files import atomic_dir, write_bytes, write_json

if TYPE_CHECKING:
    from mmtune.training.tuning.tune import Tuned

__all__ = ["describe_adapters", "load_adapters", "save_adapters"]


def save_adapters(tuned: "Tuned", directory: str | Path, base: Any, base_fingerprint: str, coefficient: float = 1.0) -> None:
    """Write the adapters of a finished (merged) model. coefficient: the share of the way from base to tuned that it went."""
    from safetensors.torch import save_file

    model = tuned.model
    state = model.state_dict()
    tensors = {n: state[n].detach().cpu().contiguous() for n in tuned.learned}
    for low in tuned.low:
        tensors |= {f"{low.name}::a": low.a.contiguous(), f"{low.name}::b": low.b.contiguous()}
    document = {
        "format": FORMAT,
        "base": base,
        "base_fingerprint": base_fingerprint,
        "fingerprint": model.fingerprint,
        "factors": {low.name: low.factor * coefficient for low in tuned.low},
        "rounded": [low.name for low in tuned.low if _four_bits(tuned, low)],
        "heads": list(model.heads),
        "own_scales": list(model.own_scales),
        "settings": model.settings,
        "tune": {m: t.model_dump(exclude_none=True) for m, t in tuned.towers.items()},
    }
    with atomic_dir(directory) as tmp:
        save_file(tensors, tmp / WEIGHTS)
        write_json(tmp / MANIFEST, document)


def describe_adapters(directory: Path, artifact: Path, info: Mapping[str, Any]) -> None:
    """Let adapters say what their run's artifact says: where they come from, and which rows they were trained on."""
    write_json(directory / INFO, dict(info))
    write_bytes(directory / TRAINED, (artifact / TRAINED).read_bytes())


def _four_bits(tuned: "Tuned", low: Low) -> bool:
    """Whether this weight is a linear layer of a tower that was held in 4 bits."""
    owner, _, name = low.name.rpartition(".")
    module = tuned.model.get_submodule(owner)
    inside = [
        t for m, t in tuned.towers.items() if any(module is x for top in tuned.model.towers[m].modules for x in top.modules())
    ]
    return name == "weight" and isinstance(module, torch.nn.Linear) and any(t.how == "qlora" for t in inside)
