"""Save adapters in PEFT's format, too, for `peft.PeftModel.from_pretrained(base, DIR)`.

PEFT supports adapters of the linear layers and convolutions of a single transformers model. Its format cannot store adapters of
several checkpoints or of open_clip's fused attention parameter. Nor can it store what is not part of the base model: linear
heads and added logit scales. `write_peft_adapter` returns a note about what was left out, which is stored under "peft" in
adapters.json.
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
    """Write adapter_config.json and adapter_model.safetensors, or nothing if PEFT's format cannot store these adapters.

    directory: where to write them
    model: the tuned model
    deltas: the adapters, with the names of the weights in the model's state dict
    base: the MODEL of the recipe
    learned: names of parameters that were trained as a whole; PEFT's files do not contain them

    Returns a note for users: how to load the files, or why they were not written.
    """
    from safetensors.torch import save_file

    if reason := _unsupported(model, deltas):
        return f"not saved in PEFT's format: {reason}"
    tensors, ranks, alphas = {}, {}, {}
    for delta in deltas:
        module = delta.name.split(".", 2)[2].removesuffix(".weight")  # without the prefix "parts.NUMBER."
        tensors[f"base_model.model.{module}.lora_A.weight"] = delta.a.detach().cpu().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = delta.b.detach().cpu().contiguous()
        ranks[module] = int(delta.a.shape[0])
        alphas[module] = delta.scaling * ranks[module]
    first = next(iter(ranks))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(
        directory / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": _base_name(base),
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
    return note if not learned else f"{note}; they do not contain {', '.join(learned[:3])}{', ...' if len(learned) > 3 else ''}"


def _unsupported(model: "Model", deltas: Sequence[LowRankDelta]) -> str:
    """Return why PEFT's format cannot store these adapters, or "" if it can."""
    if not deltas:
        return "there are no low-rank adapters"
    numbers = {int(d.name.split(".")[1]) for d in deltas}
    if len(numbers) > 1:
        return "the adapters belong to several checkpoints, and PEFT supports only one"
    family = model.backbones[numbers.pop()][0].family
    if family != "hf":
        return f"the towers have the model family {family}, and PEFT supports only transformers models (hf)"
    if fused := [d.name for d in deltas if not d.name.endswith(".weight")]:
        return f"{fused[0]} is a fused parameter, and PEFT supports only layers"
    return ""


def _base_name(base: str | Mapping[str, str]) -> str | None:
    """Return the directory or hub name of the base's transformers checkpoint, or None if it has none."""
    spec = base if isinstance(base, str) else next((s for s in base.values() if s.startswith("hf:")), "")
    return spec.removeprefix("hf:") if spec.startswith("hf:") else None
