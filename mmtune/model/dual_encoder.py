"""Towers by name in one shared space, with a learned temperature for each pair."""

import copy
import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune import modalities
from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.contracts import JsonObject, Pair, direction
from mmtune.errors import ModelError, RecipeError
from mmtune.model.encode import encode_values, infer_modality
from mmtune.model.fingerprint import fingerprint
from mmtune.model.layout import BackboneEntry, Layout, Settings
from mmtune.model.similarity import cosine_similarity
from mmtune.model.truncate import truncate
from mmtune.recipe.prompts_block import Prompts

MAX_LOG_SCALE = math.log(100.0)
INITIAL_LOG_SCALE = math.log(1 / 0.07)


class Model(nn.Module):
    """A dual encoder (or triple, ...): one tower for each modality, in one shared space. `encode` for users, `forward` for the
    trainer.

    backbones: (backbone, its modalities in use); dim: width of the shared space; heads: modalities that get a linear head even
    where their tower has that width (a tower of another width always gets one); seed: of the heads' weights. Pairs that no
    checkpoint was trained on get a logit scale of their own (`ensure_logit_scales`).
    """

    def __init__(self, backbones: list[tuple[Backbone, list[str]]], dim: int, heads: Iterable[str] = (), seed: int = 0):
        super().__init__()
        self.backbones = backbones
        self.parts = nn.ModuleList(b.module for b, _ in backbones)  # the name is part of every weight's name on disk
        self.towers: dict[str, Tower] = {m: b.towers[m] for b, names in backbones for m in names}
        self.towers = {m: self.towers[m] for m in modalities.names() if m in self.towers}
        self.width = dim
        self.settings = Settings()
        self.info: JsonObject = {}
        self._fingerprint: str | None = None
        self._hashed: tuple[list[Tensor], int] = ([], 0)
        self._scales: dict[str, LogitScale] = {}
        for backbone, names in backbones:
            for scale in backbone.logit_scales:
                for d in scale.directions:
                    if set(d.split("->")) <= set(names):
                        self._scales[d] = scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wanted = {m for m, t in self.towers.items() if t.dim != dim} | set(heads)
            self.heads = nn.ModuleDict({m: nn.Linear(self.towers[m].dim, dim, bias=False) for m in self.towers if m in wanted})
        self.own_scales = nn.ParameterDict()
        self._max_log = {id(s.log): max(MAX_LOG_SCALE, float(s.log.detach().max())) for s in self._scales.values()}

    # --- vectors -------------------------------------------------------------------------------------------------

    def encode_inputs(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Preprocessed inputs of U items -> unit vectors [U, D] float32.

        With "segments" [W] (window -> item, ascending) the inputs are W windows, and an item's vector is the mean of its windows'
        unit vectors (or, by `window_pooling`, their maximum in each dimension), normalised again. Vectors of a truncated model
        are their first dimensions, normalised again.
        """
        segments = inputs.get("segments")
        x = self.towers[modality].encode({k: v for k, v in inputs.items() if k != "segments"})
        if modality in self.heads:
            x = self.heads[modality](x)
        z = F.normalize(x.float(), dim=-1)
        if segments is not None:
            items = z.new_zeros(int(segments[-1]) + 1, z.shape[1])
            if self.window_pooling.get(modality) == "max":
                z = items.scatter_reduce(0, segments[:, None].expand_as(z), z, "amax", include_self=False)
            else:
                z = items.index_add(0, segments, z)
            z = F.normalize(z, dim=-1)
        return truncate({modality: z}, self.dim)[modality]

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """{modality: inputs} -> {modality: [U, D]}; data-parallel wrappers hook this method."""
        return {m: self.encode_inputs(m, x) for m, x in inputs.items()}

    @overload
    def encode(self, values: object, /, *, batch_size: int = 64, role: str | None = None) -> np.ndarray: ...

    @overload
    def encode(self, values: None = None, /, *, batch_size: int = 64, role: str | None = None, **signals: object) -> Any: ...

    def encode(self, values: object = None, /, *, batch_size: int = 64, role: str | None = None, **signals: object) -> Any:
        """Vectors of a user's values: paths, library objects (PIL images, arrays with a sample rate), strings.

            model.encode(["a red bag", "a blue one"])            the modality is clear from the type: [2, D]
            model.encode(NAME=[...])                             of the modality NAME: [N, D]
            model.encode(NAME="one value")                       [D]
            model.encode(NAME=[...], OTHER=[...])                {NAME: [N, D], OTHER: [M, D]}

        batch_size: values in one forward pass. role: the prompt that goes around texts, "query" for search queries (see
        `mmtune.model.prompts`); it makes no difference for a model without prompts, and for values that are not language.
        Returns float32 unit vectors. Raises ModelError for a modality that the model lacks, for values whose modality is not
        clear, and for a value that cannot be read (naming its position).
        """
        if values is None and not signals:
            raise ModelError(f"encode: name what to encode, e.g. encode({next(iter(self.towers))}=...)")
        if values is not None:
            if signals:
                raise ModelError("encode: give values of one modality, or all of them by name")
            signals = {infer_modality(self, values if isinstance(values, list) else [values]): values}
        out: dict[str, np.ndarray] = {}
        for name, value in signals.items():
            vectors = encode_values(self, name, value if isinstance(value, list) else [value], batch_size, role)
            out[name] = vectors if isinstance(value, list) else vectors[0]
        return out if len(out) > 1 else next(iter(out.values()))

    def similarity(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Cosine similarities [Q, C] float32 of vectors [Q, D] and [C, D]; a single vector [D] counts as one row."""
        return cosine_similarity(queries, candidates)

    def save(
        self,
        directory: str | Path,
        *,
        metrics: Mapping[str, object] | None = None,
        info: Mapping[str, object] | None = None,
        trained_on: Mapping[str, np.ndarray] | None = None,
    ) -> str:
        """Write the model as an artifact directory that `mmtune.load` reads; returns its fingerprint.
        See `mmtune.model.artifact.save`."""
        from mmtune.model.artifact.save import save

        return save(self, directory, metrics=metrics, info=info, trained_on=trained_on)

    # --- heads and logit scales ----------------------------------------------------------------------------------

    def ensure_heads(self, names: Iterable[str]) -> None:
        """Give every modality of `names` a linear head; new ones start at the identity as far as the widths allow."""
        for m in names:
            if m not in self.heads:
                head = nn.Linear(self.towers[m].dim, self.width, bias=False)
                nn.init.eye_(head.weight)
                self.heads[m] = head.to(self.device)

    def ensure_logit_scales(self, pairs: Iterable[Pair]) -> None:
        """Give every pair a logit scale; new ones start at 1/0.07 (CLIP, arXiv 2103.00020)."""
        for a, b in pairs:
            if direction(a, b) not in self._scales:
                log = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE, device=self.device))
                key = "~".join(sorted((a, b)))
                self.own_scales[key] = log
                self._max_log[id(log)] = MAX_LOG_SCALE
                scale = LogitScale(log, None, [direction(a, b), direction(b, a)])
                self._scales |= {d: scale for d in scale.directions}

    def logit_scale(self, a: str, b: str) -> tuple[Tensor, Tensor | None]:
        """(factor, bias or None) of the directed pair a -> b, with gradient: logits = factor * cosine + bias."""
        s = self._scales[direction(a, b)]
        return s.log.exp().squeeze(), None if s.bias is None else s.bias.squeeze()

    def logit_scale_parameters(self) -> list[nn.Parameter]:
        """The learned logit scales and biases, each once."""
        both = [p for s in self._scales.values() for p in (s.log, s.bias) if p is not None]
        return list({id(p): p for p in both}.values())

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        """Keep every factor in [1, 100] (or up to the checkpoint's own value if that is higher); called after each step."""
        for s in self._scales.values():
            s.log.clamp_(0.0, self._max_log[id(s.log)])

    # --- settings ------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Length of the vectors: the width of the shared space, or less for a truncated model."""
        return int(self.settings.get("dim", self.width))

    def truncated(self, dim: int) -> "Model":
        """The same weights (shared with this model) with vectors truncated to their first `dim` numbers and normalised again:
        another space with a fingerprint of its own. Raises ModelError for less than 1 or more than there are."""
        dim = operator.index(dim)
        if not 1 <= dim <= self.dim:
            raise ModelError(f"dim {dim}: this model's vectors have {self.dim} numbers; ask for 1 to {self.dim}")
        return self if dim == self.dim else self._with_settings(Settings(**{**self.settings, "dim": dim}))

    def with_prompts(self, prompts: Prompts) -> "Model":
        """The same weights (shared with this model) with other prompts: another space with a fingerprint of its own."""
        copied = self._with_settings(self.settings)
        copied.set_prompts(prompts)
        return copied

    def _with_settings(self, settings: Settings) -> "Model":
        copied = copy.copy(self)
        copied.settings, copied.info, copied._fingerprint = settings, dict(self.info), None
        return copied

    @property
    def prompts(self) -> Prompts:
        """Templates around texts by modality and role (see `mmtune.model.prompts`)."""
        return self.settings.get("prompts", {})

    def replace_towers(self, towers: Mapping[str, Tower]) -> None:
        """Encode these modalities with other towers over the same modules, e.g. cached ones."""
        self.towers.update(towers)

    def set_prompts(self, prompts: Prompts) -> None:
        """Replace all prompts; they are part of the fingerprint. RecipeError for a modality that the model lacks."""
        for name in prompts:
            if name not in self.towers:
                raise RecipeError(f"prompts.{name}: this model has no {name} tower; it has {', '.join(self.towers)}")
        settings = self.settings.copy()
        settings.pop("prompts", None)
        if prompts:
            settings["prompts"] = prompts
        self.settings, self._fingerprint = settings, None

    @property
    def window_pooling(self) -> dict[str, str]:
        """How the vectors of a long signal's windows become one, by modality: "max", or "mean" for those that are not here."""
        return self.settings.get("window_pooling", {})

    def set_window_pooling(self, pooling: Mapping[str, str]) -> None:
        """Replace `window_pooling`; it is part of the fingerprint. RecipeError for a modality that the model lacks, and for
        language, whose prompts are averaged."""
        for name in pooling:
            if name not in self.towers or modalities.get(name).language:
                known = [m for m in self.towers if not modalities.get(m).language]
                raise RecipeError(
                    f"window_pooling.{name}: this model cuts no such signal; there is: {', '.join(known) or 'none'}"
                )
        settings = self.settings.copy()
        settings.pop("window_pooling", None)
        if chosen := {m: how for m, how in pooling.items() if how != "mean"}:
            settings["window_pooling"] = chosen
        self.settings, self._fingerprint = settings, None

    # --- identity ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def modules_of(self, modality: str) -> list[nn.Module]:
        """The modules whose parameters belong to one modality's tower and head."""
        return [*self.towers[modality].modules, *([self.heads[modality]] if modality in self.heads else [])]

    def files(self) -> dict[str, bytes]:
        """Configuration, preprocessing and tokenizer files of every backbone, by "number/path"."""
        return {f"{i}/{name}": data for i, (b, _) in enumerate(self.backbones) for name, data in b.files.items()}

    def layout(self) -> Layout:
        """What is needed, beside weights and files, to build this model again."""
        entries = [BackboneEntry(b.family, names) for b, names in self.backbones]
        return Layout(entries, self.width, list(self.heads), list(self.own_scales), self.settings)

    @property
    def fingerprint(self) -> str:
        """The name of the embedding space (see `mmtune.model.fingerprint`). Computed at every access while training; in eval
        mode cached until a weight is written to (torch counts the writes to a tensor)."""
        tensors, writes = self._hashed
        if self._fingerprint is None or self.training or sum(t._version for t in tensors) != writes:
            self.set_fingerprint(fingerprint(self.state_dict().items(), self.files(), self.layout()))
        assert self._fingerprint is not None
        return self._fingerprint

    def set_fingerprint(self, mark: str) -> None:
        """Cache a fingerprint that was just computed from these weights, e.g. from the file that they were read from."""
        tensors = [t for t in (*self.parameters(), *self.buffers()) if not t.is_inference()]
        self._fingerprint, self._hashed = mark, (tensors, sum(t._version for t in tensors))

    def train(self, mode: bool = True) -> "Model":
        """As nn.Module; entering training forgets the cached fingerprint."""
        if mode:
            self._fingerprint = None
        return super().train(mode)
