"""The same adapters in peft's own format, beside ours: `peft.PeftModel.from_pretrained(base, DIR)` reads them.

peft adapts the linear layers (and convolutions) of one transformers model. It cannot hold adapters of several checkpoints, of
open_clip's fused attention parameter, nor what lies outside the base model (heads, logit scales of pairs): the note that
`write_peft_adapter` returns says which of these applies, and is stored in adapters.json under "peft".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.model.artifact.low_rank import LowRankDelta
from mmtune.runtime.files import write_json

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_peft_adapter(
    directory: Path, model: "Model", deltas: Sequence[LowRankDelta], base: str | Mapping[str, str], learned: Sequence[str] = ()
) -> str:
    """Write adapter_config.json and adapter_model.safetensors, or nothing where peft cannot hold these adapters.

    deltas: named as in the model's state dict; base: the recipe's MODEL; learned: parameters that were trained as a whole, which
    peft's files leave out. Returns a note for users: what the files hold, or why there are none.
    """
    from safetensors.torch import save_file

    if reason := _unsupported(model, deltas):
        return f"not in peft's format: {reason}"
    tensors, ranks, alphas = {}, {}, {}
    for delta in deltas:
        module = delta.name.split(".", 2)[2].removesuffix(".weight")
        tensors[f"base_model.model.{module}.lora_A.weight"] = delta.a.detach().cpu().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = delta.b.detach().cpu().contiguous()
        ranks[module] = int(delta.a.shape[0])
        alphas[module] = delta.factor * ranks[module]
    first = next(iter(ranks))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(
        directory / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": _place(base),
            "inference_mode": True,
            "r": ranks[first],
            "lora_alpha": alphas[first],
            "rank_pattern": {m: r for m, r in ranks.items() if r != ranks[first]},
            "alpha_pattern": {m: a for m, a in alphas.items() if a != alphas[first]},
            "target_modules": list(ranks),
            "lora_dropout": 0.0,
            "bias": "none",
        },
    )
    note = f"PeftModel.from_pretrained(base, DIR) reads {CONFIG} and {WEIGHTS}"
    return note if not learned else f"{note}; they leave out {', '.join(learned[:3])}{', ...' if len(learned) > 3 else ''}"


def _unsupported(model: "Model", deltas: Sequence[LowRankDelta]) -> str:
    """Why peft cannot hold these adapters; "" where it can."""
    if not deltas:
        return "there are no low-rank adapters"
    numbers = {int(d.name.split(".")[1]) for d in deltas}
    if len(numbers) > 1:
        return "the adapters belong to several checkpoints, and peft adapts one"
    family = model.backbones[numbers.pop()][0].family
    if family != "hf":
        return f"the towers are of the family {family}, and peft's files are for transformers models"
    if fused := [d.name for d in deltas if not d.name.endswith(".weight")]:
        return f"{fused[0]} is a fused parameter, not a layer"
    return ""


def _place(base: str | Mapping[str, str]) -> str | None:
    """The directory or hub name of the base, for `base_model_name_or_path`."""
    spec = base if isinstance(base, str) else next((s for s in base.values() if s.startswith("hf:")), "")
    return spec.removeprefix("hf:") if spec.startswith("hf:") else None
