"""Adapters on disk -> the tuned model: small files that mean something only on the base they were trained on."""

from collections.abc import Mapping
from pathlib import Path

import torch

from mmtune.errors import MmtuneError, ModelError
from mmtune.model.artifact.low_rank import Low, round_to_4bit
from mmtune.model.dual_encoder import Model
from mmtune.runtime.files import read_json

WEIGHTS, MANIFEST, FORMAT = "adapters.safetensors", "adapters.json", 1
INFO = "info.json"


@torch.no_grad()
def load_adapters(directory: str | Path, base: "Model | str | None" = None) -> Model:
    """The tuned model: its base (by default the one named there) with the adapters merged; a Model that is given as the base
    becomes the tuned one itself. Raises ModelError on another base, and for files that are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory, document = Path(directory), read_json(Path(directory) / MANIFEST)
    if document.get("format") != FORMAT:
        raise ModelError(f"{directory}: adapter format {document.get('format')!r}; this mmtune reads {FORMAT}: update mmtune")
    model = base if isinstance(base, Model) else _base(directory, document["base"] if base is None else base)
    if model.fingerprint != document["base_fingerprint"]:
        raise ModelError(
            f"{directory}: these adapters belong on {document['base']} ({document['base_fingerprint']}), not on a model with "
            f"fingerprint {model.fingerprint}"
        )
    model.ensure_logit_scales([tuple(key.split("~")) for key in document["own_scales"]])
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
    if missing := [n for n in document["factors"] if f"{n}::a" not in tensors or f"{n}::b" not in tensors]:
        raise ModelError(f"{directory / WEIGHTS}: the adapter of {missing[0]} is missing; copy the directory again")
    for name, factor in document["factors"].items():
        weight = state[name]
        if name in document["rounded"]:
            weight.copy_(round_to_4bit(weight, str(directory)))
        low = Low(name, tensors[f"{name}::a"], tensors[f"{name}::b"], factor)
        weight += low.delta(weight).to(weight.device)
    model.settings = document.get("settings", model.settings)
    model.train().eval()  # its weights were changed: its fingerprint is another
    model.info = {"source": str(directory), **(read_json(directory / INFO) if (directory / INFO).is_file() else {})}
    return model


def _base(directory: Path, base: "str | Mapping[str, str]") -> Model:
    from mmtune.model.artifact.load import load

    try:
        return load(base)
    except MmtuneError as e:
        raise ModelError(
            f"{directory}: its base cannot be loaded ({e}); load_adapters(DIR, base=MODEL) takes it from elsewhere"
        ) from None
