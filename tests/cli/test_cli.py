"""The command line: documents on standard output, one line on standard error, exit status 0, 1 or 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmtune.cli import main
from mmtune.recipe.recipe_file import read_document
from tests.support import corpora


def mm(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mmtune", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


def test_pack_train_eval_embed_as_documents(root, capsys):
    """The README's chain, in one process for speed; each verb prints exactly one JSON document."""

    def run(*arguments: str) -> dict:
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    made = {}
    for split, rows, seed in (("train", 24, 0), ("val", 12, 1)):
        source = corpora.source(root / f"source-{split}", rows, seed)
        made[split] = str(root / split)
        counts = run("pack", str(source), "--out", made[split])
        assert counts["rows"] == counts["packed"] == rows and counts["modalities"] == ["image", "audio", "text"]
    recipe = root / "recipe.yaml"
    recipe.write_text("model: ???\ndata:\n  train: ???\ntrain: {lr: 1.0e-3, batch_size: 8, precision: fp32}\n")
    # options between overrides, as people type them
    overrides = [
        "model=tiny:all",
        f"data.train={made['train']}",
        "--quiet",
        f"data.val={made['val']}",
        f"run.dir={root / 'run'}",
        "train.epochs=2",
    ]
    out = run("train", str(recipe), *overrides)
    assert {"artifact", "pairs_per_second", "metrics"} <= set(out) and out["pairs_per_second"] > 0
    scores = run("eval", out["artifact"], made["val"])
    assert scores["fingerprint"] == out["fingerprint"]
    one = scores["directions"]["text->image"]
    assert one["queries"] == 6 and one["candidates"] == 12
    assert {f"{m}@{k}" for m in ("hit", "recall", "precision", "ndcg") for k in (1, 5, 10)} | {"mrr", "map"} == set(
        one["metrics"]
    )
    for d in ("image->text", "text->audio", "audio->text", "image->audio", "audio->image", "image->image", "audio->audio"):
        assert d in scores["directions"]
    assert scores["directions"] == out["metrics"]["directions"]
    meta = run("embed", out["artifact"], made["val"], "--out", str(root / "vectors"), "--quiet")
    assert meta["counts"]["audio"]["rows"] == 12 and (root / "vectors" / "image" / "part-00000.parquet").exists()
    assert run("init", str(root / "new"))["recipe"].endswith("recipe.yaml")


@pytest.mark.parametrize("case", ["catalog", "sound", "research"])
def test_init_writes_recipes_that_parse(tmp_path, case):
    from mmtune.recipe.recipe import Recipe

    assert main(["init", str(tmp_path), "--case", case]) == 0
    recipe = Recipe.load(tmp_path / "recipe.yaml", ["model=tiny:all"])
    assert recipe.data.val == f"{tmp_path}/val"
    assert main(["init", str(tmp_path)]) == 2


FOR_PRETRAINED = {"lr", "patience"}
"""Keys of `train` that init sets for a pretrained checkpoint; the recipes were measured from random weights."""


@pytest.mark.parametrize(
    ("case", "measured"), [("catalog", "catalog_images"), ("sound", "machine_sounds"), ("research", "three_modalities")]
)
def test_init_writes_what_the_measured_recipes_found_good(tmp_path, case, measured):
    assert main(["init", str(tmp_path), "--case", case]) == 0
    recipes = Path(__file__).parents[2] / "recipes"
    ours, theirs = (read_document(p) for p in (tmp_path / "recipe.yaml", recipes / f"{measured}.yaml"))
    assert ours["objective"] == theirs["objective"] and ours["data"]["batches"] == theirs["data"]["batches"]
    if case != "research":  # whose recipe augments the one modality of its three that some data lack
        assert ours["augment"] == theirs["augment"]
    train = [{k: v for k, v in r["train"].items() if k not in FOR_PRETRAINED} for r in (ours, theirs)]
    assert train[0] == {"weight_decay": train[0]["weight_decay"], **train[1]}


@pytest.mark.parametrize(
    ("case", "options", "file"),
    [
        ("catalog", ["--size", "5000"], "catalog_pretrained"),
        ("catalog", ["--size", "5000", "--per-group", "40"], "catalog_pretrained"),
        ("sound", ["--size", "500"], "sounds_pretrained"),
        ("catalog", ["--size", "200"], "few_shot"),
        ("catalog", ["--size", "1296", "--per-group", "16"], "few_shot"),
        ("sound", ["--size", "300", "--per-group", "4"], "few_shot"),
    ],
)
def test_init_writes_the_recipe_for_pretrained_encoders_of_the_case_and_size(tmp_path, case, options, file):
    from mmtune.recipe.recipe import Recipe

    signal = {"catalog": "image", "sound": "audio"}[case]
    assert main(["init", str(tmp_path), "--case", case, "--encoders", *options]) == 0
    written = (tmp_path / "recipe.yaml").read_text()
    if options == ["--size", "5000"]:  # was stated as a fact
        assert "# 5,000 pairs, and more than 16 of them a group are assumed (--per-group N tells): low-rank adapters" in written
        assert "no picture in common, and no sku if products will be searched that training does not know." in written
    recipe = Recipe.load(tmp_path / "recipe.yaml", [f"model.{signal}=timm:x", "model.text=st:x"])
    assert recipe.model == {signal: "timm:x", "text": "st:x"} and recipe.heads[signal].init == {
        "few_shot": "cca",
        "sounds_pretrained": "cca",
    }.get(file, "ridge")
    assert recipe.pairs == [("text", signal)] and f"recipes/{file}.yaml" in written
    composed = read_document(Path(__file__).parents[2] / "recipes" / f"{file}.yaml")
    theirs = json.loads(json.dumps(composed).replace("image", signal))
    for key in ("heads", "tune", "objective", "train", "augment"):
        assert yaml.safe_load(written).get(key) == theirs.get(key), key


def test_init_needs_a_size_for_encoders(tmp_path, capsys):
    assert main(["init", str(tmp_path), "--encoders"]) == 2 and "--size PAIRS" in capsys.readouterr().err
    assert main(["init", str(tmp_path), "--size", "9"]) == 2 and "--encoders" in capsys.readouterr().err


ERRORS = [
    (["trian"], "no verb 'trian'; did you mean 'train'?"),
    (["train", "/no/recipe.yaml"], "/no/recipe.yaml: no such recipe"),
    (["eval", "nonsense", "."], "'nonsense' is not a MODEL"),
    (["eval", "tiny:all", "/no/data"], "/no/data"),
    (["eval", "tiny:all", "x", "--k", "one"], "--k one: write whole numbers"),
    (["pack"], "the following arguments are required"),
    (["pack", "/no/table.csv", "--out", "/tmp/none"], "/no/table.csv"),
    (["embed", "tiny:all", "/no/data", "--out", "/tmp/none"], "/no/data"),
]


@pytest.mark.parametrize("arguments, message", ERRORS)
def test_bad_input_is_one_line_and_exit_2(arguments, message, capfd):
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert message in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err and not out


def test_debug_shows_the_traceback():
    done = mm("eval", "nonsense", "x", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_every_recipe_in_the_project_parses():
    from pathlib import Path

    from mmtune.recipe.recipe import Recipe

    found = sorted(Path(__file__).parents[2].joinpath("recipes").glob("*.yaml"))
    assert len(found) >= 2
    for path in found:
        teacher = ["teachers.big.model=tiny:all"] if "teachers:" in path.read_text() else []
        Recipe.load(path, ["model=tiny:all", "data.train=a", "data.val=b", *teacher])
        if path.stem in ("catalog_pretrained", "sounds_pretrained", "few_shot", "locked_image", "locked_text"):
            signal = "audio" if path.stem.startswith("sounds") else "image"
            towers = [f"model.{signal}=timm:tf_efficientnet_lite0@FILE.safetensors", "model.text=st:DIR"]
            Recipe.load(path, [*towers, "data.train=a", "data.val=b", "run.dir=c"])
        head = path.read_text().split("model:")[0]
        assert f"mmtune train recipes/{path.name}" in head and "Measured:" in head


def test_readme_has_exactly_two_set_up_commands_and_ci_runs_them():
    from pathlib import Path

    root = Path(__file__).parents[2]
    lines = [x for x in (root / "README.md").read_text().splitlines() if x.startswith("pip install")]
    assert lines == ['pip install -e ".[cpu]" && mmtune demo', 'pip install -e ".[cpu,test]" && pytest -n 2']
    ci = (root / ".ci" / "run").read_text()
    assert 'pip install -q -e ".[cpu,test]"' in ci and "\npytest -n 2\n" in ci and "mmtune demo" in ci


def every_help():
    """The words of every verb and of every action, such as `index build`, `pairs logs` and `serve token add`."""
    import argparse

    from mmtune.cli import VERBS
    from mmtune.cli.dispatch import SUBVERBS, parser_of

    for name in [*VERBS, *map(" ".join, SUBVERBS)]:
        yield name.split()
        for action in parser_of(name)._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ([*name.split(), child] for child in action.choices)


@pytest.mark.parametrize("command", list(every_help()), ids=" ".join)
def test_every_help_begins_with_a_plain_sentence_and_has_an_example(command, capsys):
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    description = text.split("\n\n", 1)[1]
    first = " ".join(description.split("\n\n")[0].split())
    assert first[0].isupper() and first.endswith((".", ":")) and len(first.split()) >= 4, first
    assert f"mmtune {' '.join(command)} " in description, description


RENAMED = [
    (["eval", "tiny:clip", "/no/data", "--task", "knn", "--apart", "x"], "--apart is called --exclude-same now"),
    (["compare", "tiny:clip", "tiny:clip", "/no/data", "--general=/no/other"], "--general is called --retention now"),
    (["index", "build", "/no/collection", "--model", "tiny:clip", "--short", "8", "--data", "/no/data"], "--search-dim now"),
]


@pytest.mark.parametrize("arguments, line", RENAMED)
def test_old_spellings_of_options_are_read_and_hidden(arguments, line, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert line in err and "unrecognized" not in err and "/no/" in err and err.count("\n") == 2
    old = next(a for a in arguments if a.split("=")[0] in ("--apart", "--general", "--short")).split("=")[0]
    assert main([*arguments[: 2 if arguments[0] == "index" else 1], "--help"]) == 0
    assert old not in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    "verb", [["doctor"], ["eval", "tiny:clip"], ["compare", "tiny:clip", "tiny:clip@1"], ["embed", "tiny:clip"]]
)
def test_data_that_is_not_there_is_said_before_the_libraries_are_imported(verb, tmp_path):
    code = "import sys; from mmtune.cli import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    argv = [*verb, str(tmp_path / "nothing"), *(["--out", str(tmp_path / "o")] if verb[0] == "embed" else [])]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr == f"mmtune {verb[0]}: {tmp_path / 'nothing'}: no such file or directory\n"
