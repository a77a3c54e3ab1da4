"""`train:` and `run:` of a recipe: the optimisation, and the directory of the run."""

from typing import Literal

from pydantic import Field

from mmtune.recipe.block import RecipeBlock


class TrainConfig(RecipeBlock):
    """Length, optimizer, precision and checkpoints of the training."""

    epochs: float = Field(10, gt=0, description="passes over the training data; may be a fraction")
    batch_size: int = Field(64, ge=2, description="rows of one optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="gradient caching (GradCache): rows whose activations are in memory at once; default: all"
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        0.05, ge=0, description="of AdamW; not applied to norms, biases, position embeddings and temperatures"
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW")
    warmup: float = Field(0.05, ge=0, description="linear warm-up: below 1 a share of all steps, else a number of steps")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    clip_norm: float | None = Field(1.0, gt=0, description="gradient norm at which gradients are clipped; null: no clipping")
    scale_lr: float = Field(1.0, ge=0, description="factor on lr for the temperatures (logit scale and bias)")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast precision; auto: bf16 where the hardware computes in it, else fp32"
    )
    compile: bool = Field(False, description="torch.compile the towers' blocks; the first steps wait for the compiler")
    recompute: bool = Field(False, description="activation checkpointing: activations inside a block are computed twice")
    cpu_kernels: Literal["auto", "off"] = Field(
        "auto", description="auto: on a CPU, faster kernels replace parts of known towers; off: the upstream modules"
    )
    seed: int = Field(0, description="of data order, augmentation, dropout and new parameters")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; one is always written after each epoch"
    )
    keep: int = Field(3, ge=1, description="number of best checkpoints that are kept, beside the last one")
    metric: str = Field("map", description="validation metric, averaged over the trained directions")
    patience: int | None = Field(
        None, ge=1, description="early stopping: epochs without a better metric; default: never stop early"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay a step of a weight EMA, e.g. 0.999; the EMA is what is validated and saved"
    )
    shard: bool = Field(
        False, description="FSDP2: each of several processes holds a shard of the weights and the optimizer state"
    )
    l2_start: float = Field(
        0.0, ge=0, description="L2-SP: decay towards the starting weights, as a share of the learning rate a step"
    )


class RunConfig(RecipeBlock):
    """The directory of the run."""

    dir: str = Field("runs/run", description="gets recipe.yaml, metrics.jsonl, checkpoints/ and artifact/")
