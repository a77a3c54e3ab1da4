"""Adapters on disk: what LoRA training changed, small, and readable only on the base it was trained on.

DIR/adapters.safetensors holds `NAME::a` and `NAME::b` of every adapted weight, and whole what else learned (heads, ...);
DIR/adapters.json the base, its fingerprint, and what to do. No library but ours is needed to put them back.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmtune.artifact import load
from mmtune.errors import ModelError
from mmtune.files import atomic_dir, read_json, write_json
from mmtune.model import Model
from mmtune.train.surgery import forget_fingerprint
from mmtune.train.tune_lora import Low, round_to_4bit

if TYPE_CHECKING:
    from mmtune.train.tune import Tuned

WEIGHTS, MANIFEST, FORMAT = "adapters.safetensors", "adapters.json", 1


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


def _four_bits(tuned: "Tuned", low: Low) -> bool:
    """Whether this weight is a linear layer of a tower that was held in 4 bits."""
    owner, _, name = low.name.rpartition(".")
    module = tuned.model.get_submodule(owner)
    inside = [
        t for m, t in tuned.towers.items() if any(module is x for top in tuned.model.towers[m].modules for x in top.modules())
    ]
    return name == "weight" and isinstance(module, torch.nn.Linear) and any(t.how == "qlora" for t in inside)


@torch.no_grad()
def load_adapters(directory: str | Path, base: "Model | str | None" = None) -> Model:
    """The tuned model: its base (by default the one named there) with the adapters merged. ModelError on another base."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    document = read_json(directory / MANIFEST)
    if document.get("format") != FORMAT:
        raise ModelError(f"{directory}: adapter format {document.get('format')!r}; this mmtune reads {FORMAT}: update mmtune")
    model = base if isinstance(base, Model) else load(document["base"] if base is None else base)
    if model.fingerprint != document["base_fingerprint"]:
        raise ModelError(
            f"{directory}: these adapters belong on {document['base']} ({document['base_fingerprint']}), not on a model with "
            f"fingerprint {model.fingerprint}"
        )
    model.ensure_scales([tuple(key.split("~")) for key in document["own_scales"]])
    for m in document["heads"]:
        if m not in model.heads:
            model.heads[m] = torch.nn.Linear(model.towers[m].dim, model.width, bias=False).to(model.device)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {str(e).splitlines()[0]}") from None
    state = model.state_dict()
    for name, value in tensors.items():
        if "::" not in name:
            state[name].copy_(value)
    for name, factor in document["factors"].items():
        weight = state[name]
        if name in document["rounded"]:
            weight.copy_(round_to_4bit(weight, str(directory)))
        low = Low(name, tensors[f"{name}::a"], tensors[f"{name}::b"], factor)
        weight += low.delta(weight).to(weight.device)
    model.settings = document.get("settings", model.settings)
    forget_fingerprint(model)
    return model
