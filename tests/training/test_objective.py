"""The objective of a recipe: weights, pairs, columns, error messages, and a loss of one's own."""

import pytest
import torch

from mmtune.errors import DataError, RecipeError
from mmtune.training.build_objective import build_objective
from tests.support.losses_helpers import ROWS, make_batch, unit

PAIR = [("a", "b")]


def scale_of(a, b):
    return torch.tensor(5.0), None


def data(**columns):
    batch = make_batch(ROWS, columns)
    return {m: unit(len(batch.inputs[m]["x"]), 6, s) for m, s in (("a", 1), ("b", 2))}, batch


def test_terms_add_up_by_weight_over_pairs():
    z, batch = data()
    z["c"], batch.item_of_row["c"] = unit(12, 6, 3), torch.arange(12)
    batch.labels["c"] = torch.arange(12) + 70
    pairs = [("a", "b"), ("a", "c"), ("c", "b")]
    one = {p: float(build_objective([{"loss": "info_nce"}], [p])(z, batch, scale_of)[0]) for p in pairs}
    margin = float(build_objective([{"loss": "triplet"}], [("c", "b")])(z, batch, scale_of)[0])
    both = build_objective(
        [{"loss": "info_nce", "weight": 2.0}, {"loss": "triplet", "weight": 0.5, "pairs": [["c", "b"]]}], pairs
    )
    loss, logs = both(z, batch, scale_of)
    assert float(loss) == pytest.approx(2 * sum(one.values()) / 3 + 0.5 * margin, rel=1e-5)
    assert logs["info_nce a-c"] == pytest.approx(one["a", "c"]) and set(logs) >= {"info_nce", "triplet", "triplet c-b"}


@pytest.mark.parametrize(
    "terms,says",
    [
        (
            [{"loss": "info_nce"}, {"loss": "triplet", "margn": 0.2}],
            "objective[1].margn: triplet has no such option; did you mean 'margin'",
        ),
        ([{"loss": "infonce"}], "objective[0].loss: no loss 'infonce'; did you mean 'info_nce'"),
        ([{"loss": "info_nce", "positives": "men"}], "objective[0].positives: 'men'; did you mean 'mean'"),
        ([{"loss": "triplet", "margin": "big"}], "objective[0].margin: 'big' is not a number"),
        ([{"loss": "triplet", "weight": True}], "objective[0].weight: True is not a number"),
        ([{"weight": 1.0}], "objective[0]: needs the key `loss`"),
        ([], "objective: is empty"),
        ([{"loss": "auto", "weight": 0}], "objective: every weight is 0"),
        ([{"loss": "auto", "weight": -1}], "objective[0].weight: -1.0 is negative"),
        ([{"loss": "auto", "scale": 0}], "objective[0].scale: 0.0 is not positive"),
        ([{"loss": "auto", "pairs": [["a", "x"]]}], "objective[0].pairs: ['a', 'x'] is not among the recipe's pairs"),
        (
            [{"loss": "no.such:thing"}],
            "objective[0].loss: loss 'no.such:thing': no module 'no.such' among the installed packages nor in ",
        ),
        ([{"loss": "math:sqrt"}], "objective[0].loss: math:sqrt is not marked as a loss: decorate it with contrastive_loss"),
    ],
)
def test_a_mistake_names_its_key(terms, says):
    with pytest.raises(RecipeError) as e:
        build_objective(terms, PAIR)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "term,columns,says",
    [
        ({"loss": "mse"}, {}, "objective[0].column: the data have no numeric column 'score'"),
        ({"loss": "mse", "column": "x"}, {"score": torch.zeros(12)}, "no numeric column 'x'; the numeric columns are: score"),
        (
            {"loss": "mse"},
            {"score": torch.full((12,), 3.0)},
            "objective[0].column: column 'score' of row 'r0' is 3, which is above 1",
        ),
        (
            {"loss": "cosent"},
            {"score": torch.tensor([0.1] * 4 + [float("nan")] * 8)},
            "column 'score' of row 'r4' is nan, which is not",
        ),
        (
            {"loss": "info_nce", "weights": "g"},
            {"g": torch.full((12,), -1.0)},
            "objective[0].weights: column 'g' of row 'r0' is -1",
        ),
    ],
)
def test_bad_columns_name_key_column_and_row(term, columns, says):
    z, batch = data(**columns)
    with pytest.raises((RecipeError, DataError)) as e:
        build_objective([term], PAIR)(z, batch, scale_of)
    assert says in str(e.value)


def test_columns_are_known_before_training():
    terms = [{"loss": "cosent"}, {"loss": "mse", "column": "grade"}, {"loss": "info_nce", "weights": "w"}, {"loss": "triplet"}]
    keys = {"score": "objective[0].column", "grade": "objective[1].column", "w": "objective[2].weights"}
    assert build_objective(terms, PAIR).columns == keys


def test_a_batch_without_a_positive_is_an_error():
    batch = make_batch([(1, 11, 0, True), (1, 0, 21, True)])
    with pytest.raises(
        DataError, match="a batch has no positive pair: none of its rows .'r0', 'r1'. has both sides of a pair .a-b."
    ):
        build_objective([{"loss": "auto"}], PAIR)({"a": unit(1, 4, 1), "b": unit(1, 4, 2)}, batch, scale_of)


def test_nan_vectors_give_a_nan_loss_not_a_zero():
    z, batch = data()
    z["a"][0] = float("nan")
    for loss in ("info_nce", "sigmoid", "triplet"):
        assert torch.isnan(
            build_objective([{"loss": loss}], PAIR)(z, batch, lambda a, b: (torch.tensor(5.0), torch.tensor(-1.0)))[0]
        )


def test_out_of_tree_loss():
    z, batch = data()
    objective = build_objective([{"loss": "tests.training.test_objective:flat", "height": 3}], PAIR)
    assert float(objective(z, batch, scale_of)[0]) == pytest.approx(3.0)


from mmtune.losses import ContrastiveBlock, contrastive_loss  # noqa: E402


@contrastive_loss
def flat(block: ContrastiveBlock, *, height: float = 1.0) -> torch.Tensor:
    return torch.full((len(block.similarity),), height)
