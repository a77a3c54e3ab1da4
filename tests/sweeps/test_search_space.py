"""What KEY=VALUES means, and values that are put into a recipe."""

import pytest

from mmtune.errors import RecipeError
from mmtune.sweeps.search_space import Choices, Range, as_space, parse_space, with_values


def test_ranges_choices_and_single_values():
    space, overrides = parse_space(
        [
            "train.lr=[1e-5..1e-3 log]",
            "train.batch_size=[8 .. 16]",
            "tune={lora,full}",
            "heads={{image: {type: mlp}}, {}}",
            "train.weight_decay={0, 1e-2}",
            "train.epochs=3",
            "tune.image={how: lora, rank: 8}",
            "pairs=[[image, text]]",
        ]
    )
    assert space == {
        "train.lr": Range(1e-5, 1e-3, log=True),
        "train.batch_size": Range(8, 16, whole=True),
        "tune": Choices(('"lora"', '"full"')),
        "heads": Choices(('{"image": {"type": "mlp"}}', "{}")),
        "train.weight_decay": Choices(("0", "0.01")),
    }
    assert overrides == ["train.epochs=3", "tune.image={how: lora, rank: 8}", "pairs=[[image, text]]"]
    assert as_space({"tune": ["lora", "full"], "train.lr": "[1e-5..1e-3 log]"}) == {k: space[k] for k in ("tune", "train.lr")}


@pytest.mark.parametrize(
    "item, message",
    [
        ("train.lr", "is not KEY=VALUES"),
        ("train.lr=[1e-3..1e-5]", "is empty; write the smaller number first"),
        ("train.lr=[0..1 log]", "has to start above 0"),
        ("train.lr=[low..high]", "not a range of numbers"),
        ("tune={lora}", "two different values"),
    ],
)
def test_mistakes(item, message):
    with pytest.raises(RecipeError, match=message):
        parse_space([item])


def test_values_go_to_their_dotted_keys():
    document = {"train": {"lr": 1}, "objective": [{"loss": "info_nce"}], "tune": "full"}
    changed = with_values(document, {"train.lr": 2, "objective.0.smoothing": 0.1, "tune.image.how": "lora", "mining.rounds": 2})
    assert changed == {
        "train": {"lr": 2},
        "objective": [{"loss": "info_nce", "smoothing": 0.1}],
        "tune": {"image": {"how": "lora"}},
        "mining": {"rounds": 2},
    }
    assert document["train"] == {"lr": 1}
    with pytest.raises(RecipeError, match=r"objective\.1\.loss: the recipe has no place for '1'"):
        with_values(document, {"objective.1.loss": "x"})
