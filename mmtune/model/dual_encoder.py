"""Encoders for two or more modalities in one shared embedding space, with learned logit scales."""

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
from mmtune.model.fingerprint import FORMAT, fingerprint
from mmtune.model.heads import HeadKind, build_head, linear_layer
from mmtune.model.layout import BackboneEntry, Layout, Settings
from mmtune.model.similarity import cosine_similarity
from mmtune.model.truncate import truncate
from mmtune.model.window_groups import encode_in_groups
from mmtune.recipe.prompts_block import Prompts
from mmtune.runtime import plugins

MAX_LOG_SCALE = math.log(100.0)  # the limit used by CLIP
INITIAL_LOG_SCALE = math.log(1 / 0.07)  # the initial value used by CLIP


class Model(nn.Module):
    """A dual encoder: one tower for each of two or more modalities, in one shared embedding space.

    Use `encode` to embed values; `forward` is for the trainer.
    """

    def __init__(
        self,
        backbones: list[tuple[Backbone, list[str]]],
        dim: int,
        heads: Iterable[str] = (),
        seed: int = 0,
        head_kinds: Mapping[str, HeadKind] | None = None,
    ):
        """Combine the towers of one or more backbones.

        backbones: each backbone with the modalities whose towers are used
        dim: dimension of the shared space
        heads: modalities that get a linear head; a tower whose dimension is not `dim` always gets one
        seed: random seed of the weights of the heads
        head_kinds: structure of the heads that are not linear layers without bias

        The model has the logit scales of the checkpoints. Call `ensure_logit_scales` for pairs that no checkpoint was trained
        on.
        """
        super().__init__()
        self.backbones = backbones
        self.parts = nn.ModuleList(b.module for b, _ in backbones)  # stored weights are named parts.0.…: do not rename
        self.towers: dict[str, Tower] = {m: b.towers[m] for b, names in backbones for m in names}
        self.towers = {m: self.towers[m] for m in modalities.names() if m in self.towers}
        self.width = dim
        self.settings = Settings()
        self.info: JsonObject = {}
        self.fingerprint_format = FORMAT  # an artifact keeps the format that it was saved with
        self._fingerprint: str | None = None
        # tensors in the cached fingerprint, and the sum of their version counters, which torch increases at each write
        self._fingerprint_state: tuple[list[Tensor], int] = ([], 0)
        self._scales: dict[str, LogitScale] = {}
        for backbone, names in backbones:
            for scale in backbone.logit_scales:
                for d in scale.directions:
                    if set(d.split("->")) <= set(names):
                        self._scales[d] = scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wanted = {m for m, t in self.towers.items() if t.dim != dim} | set(heads)
            self.head_kinds = dict(head_kinds or {})
            kinds = {m: self.head_kinds.get(m, HeadKind()) for m in self.towers if m in wanted}
            self.heads = nn.ModuleDict({m: build_head(self.towers[m].dim, dim, kind) for m, kind in kinds.items()})
        self.own_scales = nn.ParameterDict()  # logit scales that no checkpoint has; stored weights have this name, too
        # a checkpoint's logit scale may already be above the limit of 100; then its own value is the limit
        self._max_log = {id(s.log): max(MAX_LOG_SCALE, float(s.log.detach().max())) for s in self._scales.values()}

    # --- embeddings ----------------------------------------------------------------------------------------------

    def encode_inputs(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed the preprocessed inputs of N items: L2-normalised embeddings [N, D] float32.

        inputs: the tower's input tensors. If they contain "segments" (int [W], sorted), the other tensors are those of W
            windows, and segments gives the item index of each window. An item's embedding is then the mean of the L2-normalised
            embeddings of its windows (or their maximum in each dimension, see `window_pooling`), L2-normalised again.

        For a truncated model, only the first `dim` dimensions are kept, and L2-normalised again (Matryoshka).
        """
        segments = inputs.get("segments")
        windows = {k: v for k, v in inputs.items() if k != "segments"}
        encode = self.towers[modality].encode
        x = encode(windows) if segments is None else encode_in_groups(encode, windows, int(segments[-1]) + 1)
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

    def output_width(self, modality: str) -> int:
        """Number of columns of `encode_inputs`."""
        return self.dim

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Embed the inputs of each modality: {modality: inputs} -> {modality: [N, D]}.

        The trainer calls this method because data-parallel wrappers such as DistributedDataParallel wrap only `forward`.
        """
        return {m: self.encode_inputs(m, x) for m, x in inputs.items()}

    @overload
    def encode(self, values: object, /, *, batch_size: int = 64, role: str | None = None) -> np.ndarray: ...

    @overload
    def encode(self, values: None = None, /, *, batch_size: int = 64, role: str | None = None, **signals: object) -> Any: ...

    def encode(self, values: object = None, /, *, batch_size: int = 64, role: str | None = None, **signals: object) -> Any:
        """Embed inputs: file paths, PIL images, (array, sample rate) pairs, strings. Returns L2-normalised float32 embeddings.

            model.encode(["a red bag", "a blue one"])            [2, D]; the modality is inferred from the types
            model.encode(NAME=[...])                             [N, D]; NAME is the modality
            model.encode(NAME="one value")                       [D]
            model.encode(NAME=[...], OTHER=[...])                {NAME: [N, D], OTHER: [M, D]}

        batch_size: values in one forward pass
        role: selects the prompt template for texts, e.g. "query" for search queries (see `mmtune.model.prompts`); it has no
            effect on a model without prompts, nor on inputs that are not texts

        Raises ModelError if the model has no tower for a modality, if the modality cannot be inferred, or if a value cannot be
        read (the message gives its position).
        """
        if values is None and not signals:
            raise ModelError(f"encode: no values given; write e.g. encode({next(iter(self.towers))}=...)")
        if values is not None:
            if signals:
                raise ModelError(
                    "encode: values given both without and with a modality; write encode(MODALITY=..., OTHER=...) for several"
                )
            signals = {infer_modality(self, values if isinstance(values, list) else [values]): values}
        out: dict[str, np.ndarray] = {}
        for name, value in signals.items():
            vectors = encode_values(self, name, value if isinstance(value, list) else [value], batch_size, role)
            out[name] = vectors if isinstance(value, list) else vectors[0]
        return out if len(out) > 1 else next(iter(out.values()))

    def similarity(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Compute the cosine similarity of each query [Q, D] with each candidate [C, D]: [Q, C] float32.

        A single embedding [D] is treated as [1, D].
        """
        return cosine_similarity(queries, candidates)

    def save(
        self,
        directory: str | Path,
        *,
        metrics: Mapping[str, object] | None = None,
        info: Mapping[str, object] | None = None,
        trained_on: Mapping[str, np.ndarray] | None = None,
    ) -> str:
        """Save the model as an artifact directory for `mmtune.load`. Returns the model's fingerprint.

        The arguments are explained in `mmtune.model.artifact.save`.
        """
        from mmtune.model.artifact.save import save

        return save(self, directory, metrics=metrics, info=info, trained_on=trained_on)

    @staticmethod
    def from_pretrained(name: str, device: str | None = None, *, revision: str | None = None) -> "Model":
        """Load the artifact ORG/NAME from the Hugging Face hub, as `mmtune.load("hub:ORG/NAME@REVISION")` does."""
        spec = f"hub:{name}@{revision}" if revision else f"hub:{name}"
        found: Model = plugins.import_target("mmtune.model.artifact.load:load", "function")(spec, device)
        return found

    def push_to_hub(self, repo: str, **options: Any) -> Any:
        """Upload this model to ORG/NAME on the Hugging Face hub: `mmtune.push_to_hub(self, repo, ...)`, explained there."""
        return plugins.import_target("mmtune.exporting.hub_upload:push_to_hub", "function")(self, repo, **options)

    def predict(self, inputs: object, *, task: str = "knn", **options: object) -> Any:
        """Predict the class or the anomaly score of each input: `mmtune.predict(self, inputs, task=task, ...)`, explained there."""
        return plugins.import_target("mmtune.prediction.predict:predict", "function")(self, inputs, task=task, **options)

    # --- heads and logit scales ----------------------------------------------------------------------------------

    def ensure_heads(self, names: Iterable[str]) -> None:
        """Add a linear head to each modality of `names` that has none, initialised as a (rectangular) identity matrix."""
        for m in names:
            if m not in self.heads:
                head = nn.Linear(self.towers[m].dim, self.width, bias=False)
                nn.init.eye_(head.weight)
                self.heads[m] = head.to(self.device)

    def replace_head(self, m: str, kind: HeadKind) -> None:
        """Give a modality a head of this structure. Its linear layer keeps the weights of the present head, or is the identity."""
        self.ensure_heads([m])
        old, head = linear_layer(self.heads[m]), build_head(self.towers[m].dim, self.width, kind)
        new = linear_layer(head)
        with torch.no_grad():
            new.weight.copy_(old.weight)
            if new.bias is not None:
                new.bias.copy_(torch.zeros_like(new.bias) if old.bias is None else old.bias)
        self.heads[m] = head.to(self.device)
        self.head_kinds = {k: v for k, v in {**self.head_kinds, m: kind}.items() if v != HeadKind()}
        self.invalidate_fingerprint()

    def ensure_logit_scales(self, pairs: Iterable[Pair]) -> None:
        """Add a logit scale to each pair that has none, initialised to 1 / 0.07 as in CLIP (arXiv 2103.00020).

        The new logit scale is shared by both directions of the pair.
        """
        for a, b in pairs:
            if direction(a, b) not in self._scales:
                log = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE, device=self.device))
                key = "~".join(sorted((a, b)))
                self.own_scales[key] = log
                self._max_log[id(log)] = MAX_LOG_SCALE
                scale = LogitScale(log, None, [direction(a, b), direction(b, a)])
                self._scales |= {d: scale for d in scale.directions}

    def logit_scale(self, a: str, b: str) -> tuple[Tensor, Tensor | None]:
        """Return the logit scale and the logit bias (or None) of the direction a -> b: logits = scale * cosine + bias.

        Both are differentiable.
        """
        s = self._scales[direction(a, b)]
        return s.log.exp().squeeze(), None if s.bias is None else s.bias.squeeze()

    @property
    def scaled_directions(self) -> list[str]:
        """Directions "a->b" with a logit scale: those that a checkpoint or a training run trained as a pair."""
        return list(self._scales)

    def logit_scale_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all logit scales and biases; one that several directions share appears once."""
        parameters = [p for s in self._scales.values() for p in (s.log, s.bias) if p is not None]
        return list({id(p): p for p in parameters}.values())

    @torch.no_grad()
    def clamp_logit_scales(self) -> None:
        """Clamp every logit scale to [1, 100], in place. If a checkpoint's initial value is above 100, that value is the limit.

        The trainer calls this after each optimizer step.
        """
        for s in self._scales.values():
            s.log.clamp_(0.0, self._max_log[id(s.log)])

    # --- settings ------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Dimension of the embeddings: that of the shared space, or less for a truncated model."""
        return int(self.settings.get("dim", self.width))

    def truncated(self, dim: int) -> "Model":
        """Return a model that keeps only the first `dim` dimensions of the embeddings and L2-normalises them (Matryoshka).

        The new model shares its weights with this one, but it has another fingerprint, because its embeddings are not
        comparable with those of this model. Raises ModelError unless 1 <= dim <= self.dim.
        """
        dim = operator.index(dim)
        if not 1 <= dim <= self.dim:
            raise ModelError(f"dim {dim}: this model's embeddings have {self.dim} dimensions; choose 1 to {self.dim}")
        return self if dim == self.dim else self._with_settings(Settings(**{**self.settings, "dim": dim}))

    def with_prompts(self, prompts: Prompts) -> "Model":
        """Return a model with other prompts. It shares its weights with this one, but it has another fingerprint."""
        copied = self._with_settings(self.settings)
        copied.set_prompts(prompts)
        return copied

    def _with_settings(self, settings: Settings) -> "Model":
        copied = copy.copy(self)
        copied.settings, copied.info, copied._fingerprint = settings, dict(self.info), None
        return copied

    @property
    def prompts(self) -> Prompts:
        """The prompt templates, {modality: {role: templates}} (see `mmtune.model.prompts`)."""
        return self.settings.get("prompts", {})

    def replace_towers(self, towers: Mapping[str, Tower]) -> None:
        """Use other towers for these modalities, e.g. towers that return cached features. They must use the same modules."""
        self.towers.update(towers)

    def set_prompts(self, prompts: Prompts) -> None:
        """Replace all prompts, in place. Prompts are part of the fingerprint.

        Raises RecipeError for a modality that the model does not have.
        """
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
        """How the embeddings of a long value's windows are pooled, {modality: "max"}. Modalities not listed use the mean."""
        return self.settings.get("window_pooling", {})

    def set_window_pooling(self, pooling: Mapping[str, str]) -> None:
        """Replace `window_pooling`, in place. It is part of the fingerprint.

        pooling: {modality: "mean" or "max"}

        Raises RecipeError for a modality that the model does not have, and for a text modality (`language`): texts have no
        windows.
        """
        for name in pooling:
            if name not in self.towers or modalities.get(name).language:
                known = [m for m in self.towers if not modalities.get(m).language]
                raise RecipeError(
                    f"window_pooling.{name}: this model has no such modality whose values are cut into windows; "
                    f"possible: {', '.join(known) or 'none'}"
                )
        settings = self.settings.copy()
        settings.pop("window_pooling", None)
        if chosen := {m: how for m, how in pooling.items() if how != "mean"}:
            settings["window_pooling"] = chosen
        self.settings, self._fingerprint = settings, None

    # --- identity ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU for a model without weights of torch (see `backbones.frozen_network`)."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def modules_of(self, modality: str) -> list[nn.Module]:
        """Return the modules with the parameters of one modality: those of its tower, and its linear head if it has one."""
        return [*self.towers[modality].modules, *([self.heads[modality]] if modality in self.heads else [])]

    def files(self) -> dict[str, bytes]:
        """Return the configuration, preprocessing and tokenizer files of all backbones.

        The keys are "number/path": the position of the backbone in the model, and the file's path within the backbone.
        """
        return {f"{i}/{name}": data for i, (b, _) in enumerate(self.backbones) for name, data in b.files.items()}

    def layout(self) -> Layout:
        """Return everything that is needed to rebuild this model, apart from weights and files."""
        entries = [BackboneEntry(b.family, names) for b, names in self.backbones]
        return Layout(entries, self.width, list(self.heads), list(self.own_scales), self.settings, self.head_kinds)

    @property
    def fingerprint(self) -> str:
        """Hash of weights, files and layout, which identifies the embedding space (see `mmtune.model.fingerprint`).

        In training mode it is computed at every access. In eval mode it is cached until a weight changes.
        """
        tensors, writes = self._fingerprint_state
        if self._fingerprint is None or self.training or sum(t._version for t in tensors) != writes:
            self.set_fingerprint(fingerprint(self.state_dict().items(), self.files(), self.layout(), self.fingerprint_format))
        assert self._fingerprint is not None
        return self._fingerprint

    def fingerprint_in_format(self, number: int) -> str:
        """Compute the fingerprint in another format, for comparison with one that an earlier version has stored."""
        if number == self.fingerprint_format:
            return self.fingerprint
        files = {
            f"{i}/{name}": data
            for i, (b, _) in enumerate(self.backbones)
            for name, data in (b.files_of_format_1() if number == 1 and b.files_of_format_1 else b.files).items()
        }
        return fingerprint(self.state_dict().items(), files, self.layout(), number)

    def set_fingerprint(self, value: str) -> None:
        """Cache a fingerprint that was computed from the current weights, e.g. while they were read from a file."""
        # inference tensors have no version counter; they cannot be changed in place outside of inference mode
        tensors = [t for t in (*self.parameters(), *self.buffers()) if not t.is_inference()]
        self._fingerprint, self._fingerprint_state = value, (tensors, sum(t._version for t in tensors))

    def invalidate_fingerprint(self) -> None:
        """Drop the cached fingerprint, so that the next access computes it again."""
        self._fingerprint = None

    def train(self, mode: bool = True) -> "Model":
        """Switch between training and eval mode, as in `nn.Module`. Training mode drops the cached fingerprint."""
        if mode:
            self.invalidate_fingerprint()
        return super().train(mode)
