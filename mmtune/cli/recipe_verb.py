"""Work with recipes without running them.

  mmtune recipe validate recipes/catalog_images.yaml model=tiny:clip data.train=a data.val=b
  mmtune recipe show recipes/catalog_images.yaml
  mmtune recipe show recipes/catalog_images.yaml model=tiny:clip data.train=a data.val=b > own.yaml
  mmtune recipe diff recipes/catalog_images.yaml recipes/machine_sounds.yaml
  mmtune recipe docs train.lr

validate   check keys, types and what belongs together; exit status 2 and one line if something is wrong
show       the recipe with the files that it includes, overrides, and every default, as YAML; the defaults are left out while
           a value that you have to set (???) is not set
diff       the keys in which two recipes differ; - is a key that one of them leaves at its default
docs       what a key or a block means, with types and defaults; without a key, the top level
A recipe may `include:` other files; its own keys win over theirs.
"""

import argparse

from mmtune.cli.dispatch import Result
from mmtune.errors import RecipeError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("validate", "show", "diff", "docs"), help="what to do")
    parser.add_argument("arguments", nargs="*", metavar="RECIPE|KEY|key=value", help="recipes and overrides, or a key for docs")


def run(args: argparse.Namespace) -> Result:
    files = [a for a in args.arguments if "=" not in a]
    overrides = [a for a in args.arguments if "=" in a]
    wanted = {"validate": (1,), "show": (1,), "diff": (2,), "docs": (0, 1)}[args.action]
    if len(files) not in wanted:
        raise RecipeError(
            f"recipe {args.action}: give {' or '.join(map(str, wanted))} {'key' if args.action == 'docs' else 'file(s)'}"
        )
    return {"validate": _validate, "show": _show, "diff": _diff, "docs": _docs}[args.action](files, overrides)


def _validate(files: list[str], overrides: list[str]) -> Result:
    from mmtune.recipe.recipe import Recipe

    Recipe.load(files[0], overrides)
    return Result({"recipe": files[0], "valid": True}, f"{files[0]}: valid")


def _show(files: list[str], overrides: list[str]) -> Result:
    import yaml

    from mmtune.recipe.recipe import Recipe
    from mmtune.recipe.recipe_file import blank_keys, read_document

    document = read_document(files[0], overrides)
    if isinstance(document, dict) and (missing := blank_keys(document)):
        document = {
            k: document[k] for k in Recipe.model_fields if k in document
        } | document  # in the order of the documentation
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return Result(document, f"{text}# not set yet, so without defaults: {', '.join(missing)}")
    recipe = Recipe.load(files[0], overrides)
    return Result(recipe.model_dump(mode="json"), recipe.to_yaml())


def _diff(files: list[str], overrides: list[str]) -> Result:
    from mmtune.recipe.recipe_file import FORMAT_KEY, changed_keys, read_document, value_at

    first, second = both = [read_document(f, overrides) for f in files]
    keys = [key for key in changed_keys(first, second) if key != FORMAT_KEY]
    found = {k: {f: value_at(document, k) for f, document in zip(files, both, strict=True)} for k in keys}
    lines = [f"{k}: {' -> '.join('-' if v is None else str(v) for v in values.values())}" for k, values in found.items()]
    return Result({"differences": found}, "\n".join(lines) or "no differences")


def _docs(files: list[str], overrides: list[str]) -> Result:
    from mmtune.recipe.recipe_keys import explain_key

    found = explain_key(files[0] if files else "")
    return Result({"key": files[0] if files else "", "meaning": found}, found)
