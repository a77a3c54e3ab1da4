"""Towers by name in one shared space, with a learned temperature for each pair."""

import copy
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune import backbones, modalities
from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.contracts import Pair, direction
from mmtune.errors import ModelError, RecipeError
from mmtune.losses.matryoshka import truncate
from mmtune.model.encode import encode_values
from mmtune.model.fingerprint import fingerprint
from mmtune.model.prompts import Prompts

MAX_LOG_SCALE = math.log(100.0)
INITIAL_LOG_SCALE = math.log(1 / 0.07)


class Model(nn.Module):
    """One or several parts as one dual encoder (or triple, ...): `encode` for users, `forward` for the trainer.

    parts: (part, modalities of it in use). A modality whose tower has another width than the shared space, or that asks
    for one, gets a linear head. Pairs that no checkpoint was trained on get a temperature of their own.
    """

    def __init__(self, parts: list[tuple[Backbone, list[str]]], dim: int, heads: Iterable[str] = (), seed: int = 0):
        super().__init__()
        self.backbones = parts
        self.parts = nn.ModuleList(p.module for p, _ in parts)
        self.towers: dict[str, Tower] = {m: p.towers[m] for p, names in parts for m in names}
        self.towers = {m: self.towers[m] for m in modalities.names() if m in self.towers}
        self.width = dim
        self.settings: dict[str, Any] = {}
        self.info: dict[str, Any] = {}
        self._fingerprint: str | None = None
        self._seen: tuple[list[Tensor], int] = ([], 0)
        self._scales: dict[str, LogitScale] = {}
        for part, names in parts:
            for scale in part.logit_scales:
                for d in scale.directions:
                    if set(d.split("->")) <= set(names):
                        self._scales[d] = scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wanted = {m for m, t in self.towers.items() if t.dim != dim} | set(heads)
            self.heads = nn.ModuleDict({m: nn.Linear(self.towers[m].dim, dim, bias=False) for m in self.towers if m in wanted})
        self.own_scales = nn.ParameterDict()
        self._top = {id(s.log): max(MAX_LOG_SCALE, float(s.log.detach().max())) for s in self._scales.values()}

    # --- vectors -------------------------------------------------------------------------------------------------

    def encode_inputs(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Inputs of U items -> unit vectors [U, D] float32. With "segments" [W] (window -> item, ascending) the inputs are W
        windows, and an item's vector is the mean of its windows' unit vectors (or, by `windows`, their greatest value in each
        dimension), normalised again. A model cut to fewer
        dimensions (`prefix`) gives the first of them, normalised again."""
        segments = inputs.get("segments")
        x = self.towers[modality].encode({k: v for k, v in inputs.items() if k != "segments"})
        if modality in self.heads:
            x = self.heads[modality](x)
        z = F.normalize(x.float(), dim=-1)
        if segments is not None:
            whole = z.new_zeros(int(segments[-1]) + 1, z.shape[1])
            if self.windows.get(modality) == "max":
                z = whole.scatter_reduce(0, segments[:, None].expand_as(z), z, "amax", include_self=False)
            else:
                z = whole.index_add(0, segments, z)
            z = F.normalize(z, dim=-1)
        return truncate({modality: z}, self.dim)[modality]

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """{modality: inputs} -> {modality: [U, D]}; the entry that data-parallel wrappers hook."""
        return {m: self.encode_inputs(m, x) for m, x in inputs.items()}

    def encode(self, batch_size: int = 64, role: str | None = None, **signals: Any) -> Any:
        """Vectors of what a user has: `encode(name=value)` with a path, library object, array or string, or a list of them.

        role: the prompt that goes around words, "query" for what asks (see `mmtune.model.prompts`); a model without prompts, and
        values that are no words, know no difference.

        Returns float32 unit vectors: [D] for one value, [N, D] for a list; a dict of these when several names are given.
        Raises ModelError for a modality the model lacks, and for a value that cannot be read (naming its position).
        """
        if not signals:
            raise ModelError(f"encode: name what to encode, e.g. encode({next(iter(self.towers))}=...)")
        out: dict[str, np.ndarray] = {}
        for name, value in signals.items():
            many = isinstance(value, list)
            vectors = encode_values(self, name, value if many else [value], batch_size, role)
            out[name] = vectors if many else vectors[0]
        return out if len(out) > 1 else next(iter(out.values()))

    # --- temperatures --------------------------------------------------------------------------------------------

    def ensure_logit_scales(self, pairs: Iterable[Pair]) -> None:
        """Give every pair a temperature; new ones start at 1/0.07 (CLIP, arXiv 2103.00020)."""
        for a, b in pairs:
            if direction(a, b) not in self._scales:
                log = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE, device=self.device))
                key = "~".join(sorted((a, b)))
                self.own_scales[key] = log
                self._top[id(log)] = MAX_LOG_SCALE
                scale = LogitScale(log, None, [direction(a, b), direction(b, a)])
                self._scales |= {d: scale for d in scale.directions}

    def logit_scale(self, a: str, b: str) -> tuple[Tensor, Tensor | None]:
        """(temperature factor, bias or None) of the directed pair a -> b, with gradient."""
        s = self._scales[direction(a, b)]
        return s.log.exp().squeeze(), None if s.bias is None else s.bias.squeeze()

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        """Keep every factor in [1, 100] (or the checkpoint's own value if that is higher); called after each step."""
        for s in self._scales.values():
            s.log.clamp_(0.0, self._top[id(s.log)])

    # --- settings ------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Length of the vectors: the towers' shared `width`, or less after `prefix`."""
        return int(self.settings.get("dim", self.width))

    def prefix(self, dim: int) -> "Model":
        """The same weights (shared with this model), whose vectors are the first `dim` numbers of its vectors, of unit length
        again: another space with a fingerprint of its own. Raises ModelError for less than 1 or more than there are."""
        dim = operator.index(dim)
        if not 1 <= dim <= self.dim:
            raise ModelError(f"dim {dim}: this model's vectors have {self.dim} numbers; ask for 1 to {self.dim}")
        if dim == self.dim:
            return self
        short = copy.copy(self)
        short.settings, short.info, short._fingerprint = {**self.settings, "dim": dim}, dict(self.info), None
        return short

    @property
    def prompts(self) -> Prompts:
        """Templates around words by modality and role (see `mmtune.model.prompts`)."""
        return self.settings.get("prompts", {})

    def replace_towers(self, towers: Mapping[str, Tower]) -> None:
        """Encode these modalities with other towers over the same modules, e.g. cached ones."""
        self.towers.update(towers)

    def set_prompts(self, prompts: Prompts) -> None:
        """Replace all prompts; they become part of the fingerprint. RecipeError for a modality that the model lacks."""
        for name in prompts:
            if name not in self.towers:
                raise RecipeError(f"prompts.{name}: this model has no {name} tower; it has {', '.join(self.towers)}")
        self.settings = {k: v for k, v in self.settings.items() if k != "prompts"} | ({"prompts": prompts} if prompts else {})
        self._fingerprint = None

    @property
    def windows(self) -> dict[str, str]:
        """How the windows of a long signal become one vector, by modality: "mean" where nothing is said, or "max"."""
        return self.settings.get("windows", {})

    def set_windows(self, windows: Mapping[str, str]) -> None:
        """Replace `windows`; part of the fingerprint. RecipeError for a modality that the model lacks, and for words, whose
        templates are averaged."""
        for name in windows:
            if name not in self.towers or modalities.get(name).language:
                known = [m for m in self.towers if not modalities.get(m).language]
                raise RecipeError(
                    f"window_pooling.{name}: this model cuts no such signal; there is: {', '.join(known) or 'none'}"
                )
        chosen = {m: how for m, how in windows.items() if how != "mean"}
        self.settings = {k: v for k, v in self.settings.items() if k != "windows"} | ({"windows": chosen} if chosen else {})
        self._fingerprint = None

    # --- identity ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def modules_of(self, modality: str) -> list[nn.Module]:
        """The modules whose parameters belong to one modality's tower and head."""
        return [*self.towers[modality].modules, *([self.heads[modality]] if modality in self.heads else [])]

    def files(self) -> dict[str, bytes]:
        """Configuration, preprocessing and tokenizer files of every part, by "part number/path"."""
        return {f"{i}/{name}": data for i, (p, _) in enumerate(self.backbones) for name, data in p.files.items()}

    def layout(self) -> dict[str, Any]:
        """What is needed, beside weights and files, to build this model again."""
        return {
            "parts": [{"family": p.family, "modalities": names} for p, names in self.backbones],
            "dim": self.width,
            "heads": list(self.heads),
            "own_scales": list(self.own_scales),
            "settings": self.settings,
        }

    @property
    def fingerprint(self) -> str:
        """The space's name (see `mmtune.model.fingerprint`). Computed anew while training, remembered in eval mode until a weight is
        written to (torch counts the writes to a tensor)."""
        tensors, writes = self._seen
        if self._fingerprint is None or self.training or sum(t._version for t in tensors) != writes:
            rules = {"normalised": True, "dtype": "float32", "metric": "cosine"}
            self._fingerprint = fingerprint(self.state_dict().items(), self.files(), self.layout() | rules)
            tensors = [t for t in (*self.parameters(), *self.buffers()) if not t.is_inference()]
            self._seen = tensors, sum(t._version for t in tensors)
        return self._fingerprint

    def train(self, mode: bool = True) -> "Model":
        """As nn.Module; entering training forgets the fingerprint."""
        if mode:
            self._fingerprint = None
        return super().train(mode)


def from_backbones(specs: Mapping[str, Backbone], seed: int = 0) -> Model:
    """A model from one part a modality (the same Backbone object may serve several). The anchor, whose width is the shared
    space's, is the first language modality, else the first."""
    order = [m for m in modalities.names() if m in specs]
    for m in order:
        if m not in specs[m].towers:
            raise ModelError(f"model.{m}: that checkpoint has no {m} tower; it has {', '.join(specs[m].towers)}")
    anchor = next((m for m in order if modalities.get(m).language), order[0])
    parts: list[tuple[Backbone, list[str]]] = []
    for m in order:
        known = next((names for p, names in parts if p is specs[m]), None)
        if known is None:
            parts.append((specs[m], [m]))
        else:
            known.append(m)
    for part, names in parts:
        for unused in set(part.towers) - set(names):
            part.free_tower(unused)
    return Model(parts, specs[anchor].towers[anchor].dim, seed=seed)


def from_spec(spec: str | Mapping[str, str]) -> Model:
    """A model from `family:place`, or from {modality: "family:place"} (also as "name=family:place,name=...")."""
    if isinstance(spec, str) and "=" in spec.split(":", 1)[0]:
        entries = [e.partition("=") for e in spec.split(",")]
        spec = {name.strip(): place.strip() for name, _, place in entries}
    if isinstance(spec, str):
        part = backbones.load(spec)
        return from_backbones(dict.fromkeys(part.towers, part))
    for m in spec:
        modalities.get(m)
    loaded = {place: backbones.load(place) for place in dict.fromkeys(spec.values())}
    return from_backbones({m: loaded[place] for m, place in spec.items()})
