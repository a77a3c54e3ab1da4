"""Write a commented recipe to start from, or the JSON Schema of recipes.

mmtune init mydata --case catalog        mydata/recipe.yaml for a use case
mmtune init --schema recipe.schema.json  from which an editor completes and checks recipes
"""

import argparse
import json
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
        "Machine sounds and their defects",
        "defect",
        "sound, text, defect",
        "recordings",
        "augment:\n  {0}: {{shift: true, gain_db: 6}}\n",
    ),
    "research": ("Every pair of modalities in one space", "group", "two or three modalities, group", "rows", ""),
}
AUGMENTED = {"catalog": 0, "sound": 1}
"""Use case -> position in the table of the modality that it augments."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", nargs="?", help="gets recipe.yaml")
    parser.add_argument("--case", choices=list(CASES), default="catalog", help="use case (default %(default)s)")
    parser.add_argument("--schema", metavar="FILE", help="write the JSON Schema of recipes there")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def run(args: argparse.Namespace) -> Result:
    from mmtune.runtime.files import write_text

    texts: dict[str, tuple[Path, str]] = {}
    if args.dir:
        texts["recipe"] = Path(args.dir) / "recipe.yaml", _recipe(args.dir, args.case)
    if args.schema:
        from mmtune.recipe.recipe_keys import json_schema

        texts["schema"] = Path(args.schema), json.dumps(json_schema(), indent=1) + "\n"
    if not texts:
        raise RecipeError("name a DIR for a recipe, or --schema FILE")
    for path, _ in texts.values():
        if path.exists() and not args.force:
            raise RecipeError(f"{path} exists already; --force overwrites it")
    for path, text in texts.values():
        write_text(path, text)
    lines = [f"{path} written" for path, _ in texts.values()]
    if "recipe" in texts:
        lines[0] += "; its first lines say what to do next"
    return Result({name: str(path) for name, (path, _) in texts.items()}, "\n".join(lines))


def _recipe(directory: str, case: str) -> str:
    """The commented recipe of a use case."""
    from mmtune import modalities

    title, group, columns, other, augment = CASES[case]
    tail = augment.format(modalities.names()[AUGMENTED[case]]) if case in AUGMENTED else ""
    head = HEAD.format(title=title, dir=directory, group=group, columns=columns, other=other)
    return f"{head}{tail}{BODY}run:\n  dir: {directory}/run\n"
