"""A commented recipe to start from: DIR/recipe.yaml for a use case."""

import argparse
from pathlib import Path

from mmtune.cli.dispatch import Result
from mmtune.errors import RecipeError

HEAD = """# {title}
# 1. mmtune pack train.csv --out {dir}/train --group {group}      (columns: {columns})
#    mmtune pack val.csv   --out {dir}/val   --group {group}      (other {other} than in train)
# 2. mmtune train {dir}/recipe.yaml model=MODEL
# 3. mmtune eval {dir}/run/artifact {dir}/val
model: ???                    # hf:DIR_OR_NAME | open_clip:NAME/TAG_OR_DIR | an artifact directory | {{modality: MODEL, ...}}
data:
  train: {dir}/train          # a list mixes sets: [{{path: DIR, weight: 1}}, {{path: DIR, weight: 0.5}}]
  val: {dir}/val              # the best checkpoint is chosen here; report on rows that neither has
  cache: 2GB                  # memory for decoded items, so that later epochs need not read them again
"""
BODY = """objective: [{loss: auto}]     # the checkpoint's own: InfoNCE, or the sigmoid loss for a SigLIP
train:
  epochs: 10
  batch_size: 64              # larger is better; micro_batch_size keeps memory small
  lr: 1.0e-5                  # 1e-5 for a pretrained checkpoint, 5e-4 from scratch
  warmup: 0.1                 # share of the steps
  patience: 3                 # epochs without a better validation metric
  metric: map
"""
CASES = {
    "catalog": (
        "Pictures of a catalog and their texts",
        "sku",
        "picture, text, sku",
        "photos",
        "augment:\n  {0}: {{crop: 0.6, flip: true, color: 0.2}}\n",
    ),
    "sound": (
        "Machine sounds and what is wrong with them",
        "defect",
        "sound, text, defect",
        "recordings",
        "augment:\n  {0}: {{shift: true, gain_db: 6}}\n",
    ),
    "research": ("Every pair of modalities in one space", "group", "two or three modalities, group", "rows", ""),
}
SIGNAL = {"catalog": 0, "sound": 1}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--case", choices=list(CASES), default="catalog", help="use case (default %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite a recipe that is there")


def run(args: argparse.Namespace) -> Result:
    from mmtune import modalities
    from mmtune.runtime.files import write_text

    path = Path(args.dir) / "recipe.yaml"
    if path.exists() and not args.force:
        raise RecipeError(f"{path} is there already; --force overwrites it")
    title, group, columns, other, augment = CASES[args.case]
    names = modalities.names()
    tail = augment.format(names[SIGNAL[args.case]]) if args.case in SIGNAL else ""
    text = HEAD.format(title=title, dir=args.dir, group=group, columns=columns, other=other) + tail + BODY
    text += f"run:\n  dir: {args.dir}/run\n"
    write_text(path, text)
    return Result({"recipe": str(path)}, f"{path} written; its head says what to do next")
