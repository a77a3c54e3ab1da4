"""Recipes: typed to the leaf, one-line errors at every depth, old spellings, plug-ins, and a file that reads back."""

import inspect
import warnings

import pytest
import yaml
from pydantic import BaseModel

from mmtune.errors import RecipeError
from mmtune.losses import TABLE
from mmtune.recipe.objective_block import BUILT_IN, CustomTerm, TermBlock
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_file import overridden, read_document, value_at
from mmtune.recipe.tune_block import FrozenTuning, FullTuning, LoraTuning
from mmtune.runtime.plugins import resolve
from mmtune.training.objective_spec import loss_options

BASE = {"model": "tiny:clip", "data": {"train": "x"}}


def parse(**changes) -> Recipe:
    return Recipe.parse({**BASE, **changes})


def test_blocks_are_typed_by_what_they_say():
    recipe = parse(
        tune={"image": "lora", "text": {"how": "full", "layer_decay": 0.5}, "audio": "frozen"},
        objective=["info_nce", {"loss": "triplet", "margin": 0.3}, {"loss": "a.b:c", "height": 3, "weight": 2}],
        teachers={"big": {"model": "hf:x"}, "judge": {"scorer": "matcher", "options": {"model": "d"}}},
        prompts={"text": {"default": "a {}", "query": ["q {}", "find {}"]}},
        augment={"image": {"crop": 0.5, "mixup": 0.1}},
        mining={"per_direction": [{"direction": "a->b", "guards": {"max_score": 0.9}, "negatives_per_query": 2}]},
        gate={"metric": "map", "guards": {"retention": -0.01}},
    )
    assert isinstance(recipe.tune, dict) and recipe.tune["image"] == LoraTuning() and recipe.tune["audio"] == FrozenTuning()
    assert recipe.tune["text"] == FullTuning(layer_decay=0.5)
    assert [type(t).__name__ for t in recipe.objective] == ["InfoNCETerm", "TripletTerm", "CustomTerm"]
    assert recipe.objective[2].options == {"height": 3} and recipe.objective[2].weight == 2
    assert recipe.prompts == {"text": {"default": ["a {}"], "query": ["q {}", "find {}"]}}
    assert recipe.augment["image"].own == {"crop": 0.5} and recipe.augment["image"].mixup == 0.1
    own = recipe.mining.for_direction("a->b")
    assert own.guards.max_score == 0.9 and own.guards.hub_cap == 10 and own.use.negatives_per_query == 2
    assert recipe.mining.for_direction("b->a").guards.max_score is None
    assert recipe.gate.guards == {"retention": -0.01}
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe


MISTAKES = [
    ({"trian": 1}, "unknown key trian; did you mean train?"),
    ({"train": {"epoch": 1}}, "unknown key train.epoch; did you mean train.epochs?"),
    (
        {"data": {"train": ["a", {"path": "b", "wieght": 1}]}},
        "unknown key data.train[1].wieght; did you mean data.train[1].weight?",
    ),
    ({"mining": {"guards": {"max_scor": 1}}}, "unknown key mining.guards.max_scor; did you mean mining.guards.max_score?"),
    (
        {"mining": {"per_direction": [{"direction": "a->b", "guards": {"hub_cup": 1}}]}},
        "unknown key mining.per_direction[0].guards.hub_cup; did you mean mining.per_direction[0].guards.hub_cap?",
    ),
    ({"tune": {"image": {"how": "lora", "rnak": 3}}}, "tune.image.rnak: unknown; did you mean 'rank'?"),
    ({"tune": {"how": "lroa"}}, "tune.how: 'lroa'; did you mean 'lora'?"),
    (
        {"objective": [{"loss": "kl", "temprature": 1}]},
        "objective[0].temprature: kl has no such option; did you mean 'temperature'?",
    ),
    ({"objective": [{"loss": "auto", "weight": True}]}, "objective[0].weight: True is not a number"),
    ({"objective": [{"loss": "triplet", "distance": "cosin"}]}, "objective[0].distance: 'cosin'; did you mean 'cosine'?"),
    ({"teachers": {"big": {"model": "x", "batchsize": 1}}}, "teachers.big.batchsize: there is no such key; did you mean"),
    (
        {"teachers": {"big": {"model": "???"}}},
        "teachers.big.model: is missing: set it in the recipe, or give teachers.big.model=VALUE",
    ),
    ({"augment": {"image": {"crops": 1}}}, "augment.image.crops: unknown; known: crop, flip"),
    ({"augment": {"text": {"mixup": 0.7}}}, "augment.text.mixup: 0.7 is not a number from 0 to 0.5"),
    ({"prompts": {"text": "no place"}}, "prompts.text.default: 'no place' must contain {} exactly once"),
    ({"gate": {"min_gian": 1}}, "gate.min_gian: unknown; did you mean min_gain?"),
    ({"matryoshka": {"dims": [4, 4]}}, "matryoshka: dims must be different numbers"),
    ({"train": {"schedule": "cosin"}}, "train.schedule: 'cosin'; did you mean 'cosine'?"),
    ({"train": {"cpu_kernels": "on"}}, "train.cpu_kernels: Input should be 'auto' or 'off' (got 'on')"),
    ({"data": {"train": "x", "cache": "lots"}}, "data.cache: 'lots' is not a size"),
    ({"data": {"train": []}}, "data.train: is empty; name your packed training data"),
    ({"interpolate": True}, "interpolate: needs data.val and data.retention, on which the coefficient is chosen"),
]


@pytest.mark.parametrize("changes, message", MISTAKES, ids=[m[:40] for _, m in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key_and_the_nearest(changes, message):
    with pytest.raises(RecipeError) as e:
        parse(**changes)
    assert str(e.value).startswith("recipe: ") and message in str(e.value) and "\n" not in str(e.value)


OLD = [
    ({"data": {"train": "x", "general": "y"}}, lambda r: r.data.retention, "y", "`general` is called `retention` now"),
    ({"windows": {"image": "max"}}, lambda r: r.window_pooling, {"image": "max"}, "`windows` is called `window_pooling` now"),
    ({"mining": {"use": {"columns": 3}}}, lambda r: r.mining.use.negatives_per_query, 3, "is called `negatives_per_query` now"),
    (
        {"mining": {"per_direction": [{"direction": "a->b", "columns": 1}]}},
        lambda r: r.mining.per_direction[0].negatives_per_query,
        1,
        "is called `negatives_per_query` now",
    ),
]


@pytest.mark.parametrize("changes, value, expected, warning", OLD)
def test_old_spellings_are_read_with_one_warning(changes, value, expected, warning):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = parse(**changes)
    assert value(recipe) == expected
    lines = [str(w.message) for w in caught]
    assert len(lines) == 1 and warning in lines[0] and "\n" not in lines[0] and caught[0].category is FutureWarning


def test_an_old_and_a_new_spelling_together_are_refused():
    with pytest.raises(RecipeError, match="`general` is the old name of `retention`; give one of them"):
        parse(data={"train": "x", "general": "y", "retention": "z"})
    with pytest.raises(RecipeError, match=r"window_pooling\.image: 'median'; did you mean 'mean'\?"):
        parse(windows={"image": "median"})


def test_every_built_in_loss_has_a_block_with_the_functions_own_options():
    assert set(BUILT_IN) == {"auto", *TABLE}
    for name, block in BUILT_IN.items():
        if name == "auto":
            continue
        function = resolve(TABLE, name, "loss")
        defaults = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert block.own_keys == set(defaults) == set(loss_options(function)), name
        assert {k: block.model_fields[k].default for k in defaults} == defaults, name
        assert set(block.model_fields) == set(TermBlock.model_fields) | set(defaults), name


def every_block(block: type[BaseModel], found: set[type[BaseModel]]) -> set[type[BaseModel]]:
    from mmtune.recipe.recipe_keys import blocks_in

    if block not in found:
        found.add(block)
        for info in block.model_fields.values():
            for inner in blocks_in(info.annotation):
                every_block(inner, found)
    return found


def test_every_field_has_a_description_and_no_type_is_any():
    from mmtune.modalities import names
    from mmtune.recipe.augment_block import options_model

    blocks = every_block(Recipe, set()) | {options_model(m) for m in names()} | {CustomTerm}
    assert len(blocks) > 30
    lacking = [f"{b.__name__}.{n}" for b in blocks for n, info in b.model_fields.items() if not info.description]
    assert lacking == []
    assert not [b.__name__ for b in blocks for info in b.model_fields.values() if "typing.Any" in str(info.annotation)]


SET = """
model: tiny:clip
data: {train: x, val: y}
augment: {image: {flip: true, custom: {"a.b:C": {p: 1}}}, audio: {mixup: 0.2}}
heads: {image: {type: mlp}}
mining: {rounds: 1, guards: {max_score: 0.5, extra: ["a.b:G"]}}
retention: {data: z, at_most: 0.1}
run: {dir: runs/a, callbacks: ["a.b:C"], trackers: [tensorboard]}
train: {betas: [0.5, 0.6], epochs: 3}
objective: [cosent]
"""


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("augment={}", "augment", {}),
        ("augment=null", "augment", {}),
        ("augment.image={}", "augment.image.custom", {}),
        ("augment.image=null", "augment.image.flip", False),
        ("augment={image: {}}", "augment.image.flip", False),
        ("augment={image: {}}", "augment.audio.mixup", 0.2),
        ("augment.image.custom={}", "augment.image.custom", {}),
        ("augment.image.custom=null", "augment.image.flip", True),
        ('augment.audio=["a.b:C"]', "augment.audio.steps", [{"a.b:C": {}}]),  # a list in place of a mapping
        ('augment.audio=["a.b:C"]', "augment.audio.mixup", 0.0),
        ('augment={audio: ["a.b:C"]}', "augment.image.flip", True),
        ("model={image: tiny:image, text: tiny:text}", "model", {"image": "tiny:image", "text": "tiny:text"}),
        ("heads={}", "heads", {}),
        ("heads=null", "heads", {}),
        ("mining={}", "mining.guards.max_score", None),
        ("mining={guards: {}}", "mining.guards.extra", []),
        ("mining={guards: {}}", "mining.rounds", 1),
        ("mining={guards: {hub_cap: 3}}", "mining.guards.max_score", 0.5),  # no empty mapping: merged
        ("mining.guards=null", "mining.guards.max_score", None),
        ("mining=null", "mining", None),
        ("retention=null", "retention", None),
        ("run.callbacks=[]", "run.callbacks", []),
        ("run.callbacks=null", "run.callbacks", []),
        ("run={callbacks: []}", "run.dir", "runs/a"),
        ("train.betas=null", "train.betas", [0.9, 0.98]),
        ("train=null", "train.epochs", Recipe.parse(BASE).train.epochs),
        ("objective=null", "objective", Recipe.parse(BASE).model_dump(mode="json")["objective"]),
    ],
)
def test_an_override_replaces_what_the_recipe_set(override, key, value, tmp_path):
    """In a file, in a mapping, and in a file that includes the one with the values."""
    path, own = tmp_path / "r.yaml", tmp_path / "own.yaml"
    path.write_text(SET)
    name, _, text = override.partition("=")
    over = yaml.safe_load(text)
    for part in reversed(name.split(".")):
        over = {part: over}
    own.write_text(yaml.safe_dump({"include": "r.yaml", **over}))
    for document in (read_document(path, [override]), overridden(yaml.safe_load(SET), [override]), read_document(own)):
        assert value_at(Recipe.parse(document).model_dump(mode="json"), key) == value


def test_an_empty_block_that_needs_a_key_says_which(tmp_path):
    with pytest.raises(RecipeError, match=r"retention\.data: is missing"):
        Recipe.parse(overridden(yaml.safe_load(SET), ["retention={}"]))
    with pytest.raises(RecipeError, match=r"train\.epochs: .*None"):  # null is a value of lists, mappings and blocks alone
        Recipe.parse(overridden(yaml.safe_load(SET), ["train.epochs=null"]))
