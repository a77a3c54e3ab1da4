"""The recipe block `train:`: length, optimizer, precision, validation and checkpoints of training."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.recipe.optimizer_block import AdamWOptimizer, Optimizer
from mmtune.runtime.sizes import parse_count

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""A mode of torch.compile."""
BETAS = (0.9, 0.98)


def _check_count(value: int | str) -> int | str:
    try:
        parse_count(value)
    except ValueError as e:
        raise invalid(str(e)) from None
    return value


Count = Annotated[int | str, AfterValidator(_check_count)]
"""A number of things, or a string such as "400M" or "1.5B"."""


class TrainConfig(RecipeBlock):
    """Length, optimizer, precision and checkpoints of training."""

    epochs: float = Field(10, gt=0, description="number of passes over the training data; may be fractional")
    samples: Count | None = Field(
        None,
        description="length of the run as the number of pairs it sees, e.g. 400M, in place of `epochs`; needed for streamed data "
        "whose number of rows is unknown",
    )
    batch_size: int = Field(
        64,
        ge=2,
        description="rows whose values are candidates for each other, over all processes together; an optimizer step has "
        "`gradient_accumulation_steps` batches",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="rows whose activations are in memory at once (gradient caching, GradCache); null: the whole batch",
    )
    micro_batch_tokens: PositiveInt | dict[str, PositiveInt] | None = Field(
        None,
        description="the same by length: tokens of texts (samples of sounds) whose activations are in memory at once, padding included; values "
        "are sorted by length, so little padding is computed. A number, for all modalities whose inputs have lengths, or {MODALITY: "
        "NUMBER}; the others have `micro_batch_size`",
    )
    length_buckets: int | None = Field(
        None,
        ge=2,
        description="without gradient caching: encode the values of a batch in this many parts of like length, so that less padding is "
        "computed; for modalities whose inputs have lengths (texts, waveforms); null: one part",
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="batches per optimizer step, whose gradients are averaged; each batch has only its own negatives "
        "(`micro_batch_size` keeps those of the whole batch)",
    )
    optimizer: Optimizer = Field(
        AdamWOptimizer(),
        description="optimizer: adamw, adamw_8bit, adafactor, lamb, lion or package.module:Class; with options: {name: NAME, ...}",
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate; `tune` can set another one for each tower")
    weight_decay: float = Field(
        0.05,
        ge=0,
        description="weight decay; not applied to norms, biases, position embeddings, logit scale and logit bias; `tune` can set "
        "another one for each tower",
    )
    betas: tuple[float, float] = Field(BETAS, description="beta1 and beta2 of the optimizer")
    warmup: float = Field(
        0.05, ge=0, description="length of the linear warm-up: a fraction of all steps if below 1, else steps"
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine",
        description="learning rate after the warm-up; cosine, linear: decay to `min_lr`; constant: the peak learning rate; wsd "
        "(warm-up, stable, decay): constant, and a decay in the last steps (`decay`)",
    )
    min_lr: float = Field(
        0.0,
        ge=0,
        le=1,
        description="learning rate at the end of a decay, as a fraction of the peak learning rate; for cosine, linear and wsd",
    )
    decay: float = Field(0.1, gt=0, description="length of the decay of wsd: a fraction of all steps if below 1, else steps")
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = Field(
        "1-sqrt", description="shape of the decay of wsd; 1-sqrt: 1 minus the square root of the decay's progress"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="maximum gradient norm; null: no gradient clipping")
    scale_lr: float = Field(1.0, ge=0, description="factor on `lr` for the logit scale and logit bias")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast precision; auto: bf16 if the hardware computes in it, else fp32"
    )
    reduce_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="type in which several processes sum their gradients; bf16 halves what travels between them and rounds each gradient to "
        "8 bits of precision; weights, and what the optimizer computes, stay float32",
    )
    compile: bool | CompileMode = Field(
        False,
        description="compile the towers' blocks with torch.compile; the first steps take much longer. A string is torch's mode: reduce-overhead "
        "(CUDA graphs, for small towers in small batches on a GPU), max-autotune, default (the same as true)",
    )
    channels_last: bool = Field(
        False,
        description="images of convolutional towers in torch's memory format channels_last during training, faster on GPUs with tensor cores; "
        "timm's towers always have it on a CPU",
    )
    recompute: bool = Field(
        False, description="activation checkpointing: save memory by recomputing activations inside blocks in the backward pass"
    )
    cpu_kernels: Literal["auto", "off"] = Field(
        "auto", description="auto: on a CPU, replace parts of known towers by faster kernels; off: use the upstream modules"
    )
    seed: int = Field(0, description="random seed of data order, augmentation, dropout and new parameters")
    checkpoint_every: int | None = Field(
        None, ge=1, description="write a checkpoint every this many steps, in addition to the one after each epoch; null: off"
    )
    keep: int = Field(3, ge=1, description="number of best checkpoints to keep, in addition to the last one")
    metric: str = Field(
        "map", description="retrieval metric for validation, averaged over the trained directions; map: mean average precision"
    )
    validate_at_start: bool = Field(
        False, description="validate before the first step, too; that score is logged, and selects no checkpoint"
    )
    validate_every: int | None = Field(
        None, ge=1, description="validate every this many steps, in addition to the validation after each epoch; null: off"
    )
    patience: int | None = Field(
        None, ge=1, description="early stopping: stop after this many validations without a better metric; null: never"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of an exponential moving average (EMA) of the weights, e.g. 0.999; the averaged weights are "
        "validated and saved; null: off",
    )
    shard: bool = Field(
        False, description="FSDP2: shard the weights and the optimizer state over the processes of a distributed run"
    )
    l2_start: float = Field(
        0.0,
        ge=0,
        description="L2-SP regularisation: each step moves the weights towards the starting weights by lr x l2_start of the "
        "distance; 0: off",
    )

    @property
    def n_samples(self) -> int:
        """`samples` as a number; 0 if it is not set."""
        return parse_count(self.samples) if self.samples is not None else 0

    @property
    def caches_gradients(self) -> bool:
        """Whether gradients are cached, so that the inputs of a batch lie on the device one micro-batch at a time."""
        return self.micro_batch_size is not None or self.micro_batch_tokens is not None

    @model_validator(mode="after")
    def _keys_fit(self) -> "TrainConfig":
        name = self.optimizer.name
        if not self.optimizer.has_betas and self.betas != BETAS:
            raise invalid(f"betas: {name} has no betas; leave the key out")
        if self.shard and not self.optimizer.shardable:
            raise invalid(f"shard: {name} needs whole weights, which no process has with shard; use adamw or lion")
        if self.length_buckets is not None:
            for key in ("micro_batch_size", "micro_batch_tokens"):
                if getattr(self, key) is not None:
                    raise invalid(
                        f"length_buckets: is for training without gradient caching; leave it or {key} out (micro_batch_tokens sorts by "
                        "length, too)"
                    )
            if self.shard:
                raise invalid("length_buckets: with shard all processes must run equal parts; use micro_batch_tokens")
        if self.compile in ("reduce-overhead", "max-autotune"):
            for key, given in (
                ("micro_batch_size", self.micro_batch_size is not None),
                ("micro_batch_tokens", self.micro_batch_tokens is not None),
                ("gradient_accumulation_steps", self.gradient_accumulation_steps > 1),
                ("shard", self.shard),
            ):
                if given:
                    raise invalid(
                        f"compile: {self.compile} replays CUDA graphs, which overwrite the gradients of the pass before; use compile: true "
                        f"with {key}"
                    )
        if self.schedule == "constant" and self.min_lr:
            raise invalid("min_lr: schedule: constant has no decay; use cosine, linear or wsd")
        return self
