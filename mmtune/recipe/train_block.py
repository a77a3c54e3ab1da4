"""The recipe blocks `train:` (optimisation) and `run:` (run directory)."""

from typing import Literal

from pydantic import Field

from mmtune.recipe.block import RecipeBlock


class TrainConfig(RecipeBlock):
    """Length, optimizer, precision and checkpoints of training."""

    epochs: float = Field(10, gt=0, description="number of passes over the training data; may be fractional")
    batch_size: int = Field(64, ge=2, description="rows per optimizer step, over all processes together")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="rows whose activations are in memory at once (gradient caching, GradCache); null: the whole batch",
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate (AdamW)")
    weight_decay: float = Field(
        0.05,
        ge=0,
        description="weight decay (AdamW); not applied to norms, biases, position embeddings, logit scale and logit bias",
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="beta1 and beta2 of AdamW")
    warmup: float = Field(
        0.05, ge=0, description="length of the linear warm-up: a fraction of all steps if below 1, else steps"
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up; cosine: cosine decay to 0"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="maximum gradient norm; null: no gradient clipping")
    scale_lr: float = Field(1.0, ge=0, description="factor on `lr` for the logit scale and logit bias")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast precision; auto: bf16 if the hardware computes in it, else fp32"
    )
    compile: bool = Field(False, description="compile the towers' blocks with torch.compile; the first steps take much longer")
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
    patience: int | None = Field(
        None, ge=1, description="early stopping: stop after this many epochs without a better metric; null: never"
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


class RunConfig(RecipeBlock):
    """The run directory."""

    dir: str = Field("runs/run", description="directory for recipe.yaml, metrics.jsonl, checkpoints/ and artifact/")
