"""Write a commented recipe to start from, or the JSON Schema of recipes.

mmtune init mydata --case catalog         write mydata/recipe.yaml for a use case
mmtune init mydata --encoders --size 800 --per-group 20   for one pretrained encoder per modality, by the number of pairs
mmtune init --schema recipe.schema.json   write the schema, with which an editor can complete and check recipes
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from mmtune.cli.dispatch import Result
from mmtune.errors import RecipeError
from mmtune.recipe.pretrained_plans import pretrained_plan

HEAD = """# {title}
# 1. Pack your tables (columns: {columns}). The three sets must have no {unit}.
#    mmtune pack train.csv --out {dir}/train --group {group}
#    mmtune pack val.csv   --out {dir}/val   --group {group}
#    mmtune pack test.csv  --out {dir}/test  --group {group}
# 2. mmtune train {dir}/recipe.yaml model=MODEL
# 3. mmtune eval {dir}/run/artifact {dir}/test
model: ???                    # required; set here or with model=MODEL: hf:DIR_OR_NAME, open_clip:NAME/TAG_OR_DIR, an artifact
                              # directory, or one encoder per modality {{MODALITY: MODEL, ...}}
data:
  train: {dir}/train          # to mix several datasets: [{{path: DIR, weight: 1}}, {{path: DIR, weight: 0.5}}] (sampling weights)
  val: {dir}/val              # selects the best checkpoint, so report metrics on the separate test set
  cache: 2GB                  # memory for decoded items, so that later epochs need not decode them again
  batches: spread             # a batch holds as many values of {group} as possible
"""
BODY = """{objective}{augment}tune: full                    # full, lora or head: mmtune advise MODEL {dir}/train --corpus-size N says what this data is enough for
train:
  epochs: 12
  batch_size: {batch_size}              # larger is better; micro_batch_size limits the memory
  lr: 1.0e-5                  # 1e-5 for a pretrained checkpoint, 5e-4 from scratch
  weight_decay: 0.1
  warmup: {warmup}                # share of the training steps
  patience: 3                 # stop after this many epochs without a better validation metric
  metric: map                 # mean average precision (MAP) over retrieval in both directions
"""


class UseCase(NamedTuple):
    """What a recipe for one use case says. The settings are those of the measured recipe in recipes/; a test compares them.

    title: the first comment line of the recipe.
    group: example name of the group column.
    columns: example column names of the tables.
    unit: what the training, validation and test sets must not have in common, as the end of a sentence.
    objective: the recipe's objective.
    augment: the recipe's augmentation block; {0} is the modality.
    batch_size: queries in a batch.
    warmup: share of the training steps in which the learning rate rises.
    unit_of_encoders: `unit` of the recipes for pretrained encoders, which were measured on other data; None if it is the same.
    """

    title: str
    group: str
    columns: str
    unit: str
    objective: str
    augment: str = ""
    batch_size: int = 64
    warmup: float = 0.1
    unit_of_encoders: str | None = None


CASES = {
    "catalog": UseCase(
        "Product catalog: pictures and texts",
        "sku",
        "picture, text, sku",
        "sku in common",
        "objective:                    # for a SigLIP checkpoint: [{loss: sigmoid}]; with several texts per sku: positives: mean\n"
        "  - {loss: info_nce, positives: mask, smoothing: 0.1}\n",
        "augment:\n  {0}: {{flip: true}}         # no flip where left and right differ; crop: 0.5 too when there are many epochs\n",
        unit_of_encoders="picture in common, and no sku if products will be searched that training does not know",
    ),
    "sound": UseCase(
        "Machine sounds and their defects",
        "defect",
        "sound, text, defect",
        "recording in common",
        "objective:                    # every sound and text of a defect is a positive; a little label smoothing\n"
        "  - {loss: info_nce, positives: mean, smoothing: 0.1}\n",
        "augment:\n  {0}: {{shift: true, polarity: true}}    # gain_db only where loudness carries no information\n",
        32,
        0.25,
    ),
    "research": UseCase(
        "Two or three modalities in one shared embedding space, trained on every pair of modalities",
        "group",
        "one per modality, group",
        "group in common",
        "objective:                    # for a SigLIP checkpoint: [{loss: sigmoid}]\n  - {loss: info_nce, positives: mask}\n",
    ),
}
DEFAULT_CASE = "catalog"
AUGMENTED = {"catalog": 0, "sound": 1}
"""{use case: position, in the table of modalities, of the modality that it augments}."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", nargs="?", help="directory in which to write recipe.yaml")
    parser.add_argument(
        "--case",
        choices=list(CASES),
        help="use case: catalog (products, pictures and texts), sound (machine sounds), research (any pairs of modalities) "
        f"(default {DEFAULT_CASE}; asked for in a terminal)",
    )
    parser.add_argument(
        "--encoders",
        action="store_true",
        help="for one pretrained encoder per modality (model.MODALITY=MODEL each) instead of one model of both; needs --size",
    )
    parser.add_argument(
        "--size", type=int, metavar="PAIRS", help="with --encoders: number of training pairs, which decides what is tuned"
    )
    parser.add_argument(
        "--per-group",
        type=int,
        metavar="N",
        help="with --encoders: training pairs of a typical product or fault; up to 16 get the recipe for few examples",
    )
    parser.add_argument("--schema", metavar="FILE", help="write the JSON Schema of recipes to FILE")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def run(args: argparse.Namespace) -> Result:
    from mmtune.runtime.files import write_text

    texts: dict[str, tuple[Path, str]] = {}
    if args.dir:
        _ask(args)
        if args.encoders and (args.size is None or args.size < 1):
            raise RecipeError("--encoders: give --size PAIRS, the number of training pairs, too")
        if args.encoders and args.case not in AUGMENTED:
            raise RecipeError(
                f"--encoders: choose --case {' or '.join(AUGMENTED)}, which has a modality to align to the captions"
            )
        if args.per_group is not None and (args.per_group < 1 or not args.encoders):
            raise RecipeError("--per-group: goes with --encoders, and must be 1 or more")
        if args.size is not None and not args.encoders:
            raise RecipeError("--size: decides how pretrained encoders are tuned; give --encoders, too")
        encoders = args.encoders
        made = _recipe_of_encoders(args.dir, args.case, args.size, args.per_group) if encoders else _recipe(args.dir, args.case)
        texts["recipe"] = Path(args.dir) / "recipe.yaml", made
    if args.schema:
        from mmtune.recipe.recipe_keys import json_schema

        texts["schema"] = Path(args.schema), json.dumps(json_schema(), indent=1) + "\n"
    if not texts:
        raise RecipeError("nothing to write; name a DIR for a recipe, or --schema FILE")
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
    """Return the commented recipe of a use case."""
    from mmtune import modalities

    use_case = CASES[case]
    tail = use_case.augment.format(modalities.names()[AUGMENTED[case]]) if case in AUGMENTED else ""
    head = HEAD.format(title=use_case.title, dir=directory, group=use_case.group, columns=use_case.columns, unit=use_case.unit)
    body = BODY.format(
        dir=directory, objective=use_case.objective, augment=tail, batch_size=use_case.batch_size, warmup=use_case.warmup
    )
    return f"{head}{body}run:\n  dir: {directory}/run\n"


def _recipe_of_encoders(directory: str, case: str, size: int, per_group: int | None) -> str:
    """Return the commented recipe for one pretrained encoder per modality, `size` training pairs and `per_group` rows a group."""
    from mmtune import modalities

    signal = modalities.names()[AUGMENTED[case]]
    language = next(m for m in modalities.names() if modalities.get(m).language)
    plan, why = pretrained_plan(case, size, per_group)
    use_case = CASES[case]
    unit = use_case.unit_of_encoders or use_case.unit
    head = HEAD.format(title=use_case.title, dir=directory, group=use_case.group, columns=use_case.columns, unit=unit)
    before, after = head.split("model: ???", 1)
    rest = after[after.index("\ndata:") + 1 :]
    before = before.replace(" model=MODEL", f" model.{signal}=MODEL model.{language}=MODEL")
    model = f"model:                        # timm:NAME@FILE.safetensors, hf:DIR, st:DIR, an artifact directory\n  {signal}: ???\n  {language}: ???\n"
    body = plan.body.format(signal=signal, language=language)
    retention = f"# retention: {{data: {directory}/general, at_most: 0.02}}   # forgetting budget: packed data on which at most this much MAP may be lost; interpolates with the base\n"
    return (
        f"{before}# {why} (recipes/{plan.file} of the project says what was measured)\n{model}{rest}"
        f"pairs: [[{language}, {signal}]]\n{retention}{body}run:\n  dir: {directory}/run\n"
    )


def _ask(args: argparse.Namespace) -> None:
    """Ask in a terminal for the case and the size that were not given; elsewhere take the default case."""
    import sys

    if args.case is None and sys.stdin.isatty() and not args.json:
        answer = input(f"use case ({', '.join(CASES)}) [{DEFAULT_CASE}]: ").strip() or DEFAULT_CASE
        if answer not in CASES:
            raise RecipeError(f"no use case {answer!r}; there are: {', '.join(CASES)}")
        args.case = answer
        if answer not in AUGMENTED:
            return
        pairs = input("training pairs, if you start from one pretrained encoder per modality [else empty]: ").strip()
        if pairs:
            if not pairs.isdigit():
                raise RecipeError(f"training pairs: {pairs!r} is not a number")
            args.encoders, args.size = True, int(pairs)
            rows = input("training pairs of a typical product or fault [unknown: empty]: ").strip()
            if rows and not rows.isdigit():
                raise RecipeError(f"training pairs of a product: {rows!r} is not a number")
            args.per_group = int(rows) if rows else None
    args.case = args.case or DEFAULT_CASE
