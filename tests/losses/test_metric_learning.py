"""Losses and miners of pytorch-metric-learning through the objective equal the library called by hand on the same embeddings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mmtune
from mmtune.contracts import Batch
from mmtune.errors import RecipeError, TrainingError
from mmtune.losses import TABLE, class_label_loss
from mmtune.losses.metric_learning import UNUSABLE
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.train_block import TrainConfig
from mmtune.training.build_objective import build_objective
from mmtune.training.class_labels import count_classes
from mmtune.training.optimizer import parameter_groups
from tests.support.losses_helpers import unit

pml = pytest.importorskip("pytorch_metric_learning", reason="the extra pml")
from pytorch_metric_learning import losses, miners  # noqa: E402

N, DIM = 24, 8
ARGUMENTS = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}


def data(labels=None, contents=None):
    """N rows of modalities a and b, all contents different; 6 classes of 4 rows in turn, in the column `group`."""
    groups = np.array([1 + i % 6 for i in range(N)] if labels is None else labels)
    contents = contents or {}
    every = {"id": np.arange(1, N + 1), "group": groups}
    every |= {m: np.array(contents.get(m, 100 * k + np.arange(N))) for k, m in ((1, "a"), (2, "b"))}
    present = {m: every[m] > 0 for m in "ab"}
    return SimpleNamespace(spec="rows", labels=every, present=present, ids=[f"r{i}" for i in range(N)], __len__=None)


class Rows:
    """`data` with a length."""

    def __init__(self, **options):
        self.__dict__.update(data(**options).__dict__)

    def __len__(self):
        return N


def batch_of(rows, of):
    """The batch of these rows, all of which are queries."""
    index = torch.tensor(rows)
    labels = {k: torch.from_numpy(v)[index] for k, v in of.labels.items()}
    items = {m: torch.where(torch.from_numpy(of.present[m])[index], torch.arange(len(rows)), -1) for m in "ab"}
    return Batch([of.ids[i] for i in rows], index, torch.ones(len(rows), dtype=torch.bool), {}, items, labels)


def scale_of(a, b):
    return torch.tensor(10.0), None


def through_us(term, z, of, rows, pairs=(("a", "a"),)):
    objective = build_objective([term], list(pairs), dim=DIM, data=of, seed=3)
    loss, _ = objective(z, batch_of(rows, of), scale_of)
    return loss, objective


def usable():
    return sorted(
        n
        for n, c in vars(losses).items()
        if isinstance(c, type) and issubclass(c, losses.BaseMetricLossFunction) and n not in UNUSABLE
    )


def test_there_are_as_many_losses_as_the_library_has():
    assert len(usable()) >= 30 and {"ProxyAnchorLoss", "ArcFaceLoss", "SupConLoss", "NTXentLoss", "CircleLoss"} <= set(usable())


@pytest.mark.parametrize("name", usable())
def test_value_and_gradients_are_those_of_the_library(name):
    rows, of = [0, 1, 6, 7] if name == "SmoothAPLoss" else [0, 1, 2, 3, 6, 7, 13, 20], Rows()  # SmoothAP: equal counts
    z = unit(len(rows), DIM, 1).requires_grad_()
    loss, objective = through_us({"loss": f"pml:{name}", **ARGUMENTS.get(name, {})}, {"a": z}, of, rows)
    module = objective.class_losses["0"].loss
    assert type(module) is getattr(losses, name)
    parameters = list(module.parameters())
    got = torch.autograd.grad(loss, [z, *parameters], allow_unused=True)
    arguments = {"num_classes": 6, "embedding_size": DIM, "descriptors_dim": DIM}
    kept = {k: v for k, v in arguments.items() if k in _needed(name)}
    by_hand = getattr(losses, name)(**kept, **ARGUMENTS.get(name, {}))
    by_hand.load_state_dict(module.state_dict())
    classes = torch.tensor([i % 6 for i in rows])
    value = by_hand(z, classes)
    want = torch.autograd.grad(value, [z, *by_hand.parameters()], allow_unused=True)
    assert abs(float(loss) - float(value)) <= 1e-6 * max(1.0, abs(float(value)))
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None) and (g is None or torch.allclose(g, w, rtol=1e-6, atol=1e-6))
    assert got[0] is not None and (float(got[0].abs().sum()) > 0 or name in ("HistogramLoss", "LiftedStructureLoss"))


def _needed(name):
    from mmtune.losses.metric_learning import constructor_parameters

    found = constructor_parameters(getattr(losses, name))
    return {k for k, p in found.items() if p.default is p.empty}


MINERS = sorted(n for n, c in vars(miners).items() if isinstance(c, type) and n not in UNUSABLE)


@pytest.mark.parametrize("name", [n for n in MINERS if n not in ("UniformHistogramMiner", "DistanceWeightedMiner")])
def test_miners_select_what_they_select_by_hand(name):
    rows, of = [0, 1, 2, 3, 6, 7, 8, 13, 20], Rows()
    z = unit(len(rows), DIM, 2)
    loss, _ = through_us({"loss": "pml:TripletMarginLoss", "margin": 0.5, "miner": f"pml:{name}"}, {"a": z}, of, rows)
    classes = torch.tensor([i % 6 for i in rows])
    value = losses.TripletMarginLoss(margin=0.5)(z, classes, getattr(miners, name)()(z, classes))
    assert float(loss) == pytest.approx(float(value), rel=1e-6)


def test_arguments_distances_and_a_miner_with_arguments():
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.reducers import ThresholdReducer

    rows, of = [0, 1, 2, 3, 6, 7, 13, 20], Rows()
    z = unit(len(rows), DIM, 4)
    term = {
        "loss": "pml:ContrastiveLoss",
        "pos_margin": 0.1,
        "neg_margin": 1.3,
        "distance": {"name": "pml:LpDistance", "p": 1, "normalize_embeddings": False},
        "reducer": {"name": "ThresholdReducer", "low": 0.05},
        "miner": {
            "name": "pml:PairMarginMiner",
            "pos_margin": 0.0,
            "neg_margin": 5.0,
            "distance": {"name": "LpDistance", "p": 1},
        },
    }
    classes = torch.tensor([i % 6 for i in rows])
    mined = miners.PairMarginMiner(pos_margin=0.0, neg_margin=5.0, distance=LpDistance(p=1))(z, classes)
    by_hand = losses.ContrastiveLoss(
        0.1, 1.3, distance=LpDistance(p=1, normalize_embeddings=False), reducer=ThresholdReducer(low=0.05)
    )
    assert float(through_us(term, {"a": z}, of, rows)[0]) == pytest.approx(float(by_hand(z, classes, mined)), rel=1e-6)


def test_two_modalities_share_classes_and_proxies():
    rows, of = [0, 1, 6, 7], Rows()
    z = {"a": unit(4, DIM, 5), "b": unit(4, DIM, 6)}
    loss, objective = through_us({"loss": "pml:ArcFaceLoss", "scale": 16, "margin": 20}, z, of, rows, [("a", "b")])
    by_hand = losses.ArcFaceLoss(6, DIM, margin=20, scale=16)
    by_hand.load_state_dict(objective.class_losses["0"].loss.state_dict())
    classes = torch.tensor([0, 1, 0, 1] * 2)
    assert float(loss) == pytest.approx(float(by_hand(torch.cat([z["a"], z["b"]]), classes)), rel=1e-6)


def test_classes_are_counted_and_values_without_a_class_are_left_out():
    labels = [1 + i % 6 for i in range(N)]
    labels[4] = labels[9] = 0
    contents = {"a": [100 + i for i in range(N)]}
    contents["a"][9] = contents["a"][3]  # the same content as a labelled row: it has its class
    contents["a"][7] = contents["a"][8]  # the same content in two classes: left out
    contents["a"][11] = 0  # row 11 has no value of a
    of = Rows(labels=labels, contents=contents)
    found = count_classes(of, "group", [("a", "a")], "objective[1].label")
    assert found.count == 6
    want = [-1 if i in (4, 7, 8, 11) else i % 6 for i in range(N)]
    want[9] = 3
    assert found.classes["a"].tolist() == want
    assert found.notes == [
        "objective[1]: 6 classes (column 'group')",
        "objective[1]: 1 of 21 a values are left out: without a class",
        "objective[1]: 1 of 21 a values are left out: with several classes",
    ]
    rows = [4, 0, 6, 7, 1]
    z = unit(len(rows), DIM, 7)
    loss, _ = through_us({"loss": "pml:SupConLoss"}, {"a": z}, of, rows)
    value = losses.SupConLoss()(z[[1, 2, 4]], torch.tensor([0, 0, 1]))
    assert float(loss) == pytest.approx(float(value), rel=1e-6)
    with pytest.raises(RecipeError, match=r"objective\[0\].label: column 'group' of rows has 1 different values"):
        count_classes(Rows(labels=[5] * N), "group", [("a", "a")], "objective[0].label")
    unlabelled = through_us({"loss": "pml:ProxyAnchorLoss"}, {"a": unit(1, DIM, 0).requires_grad_()}, of, [4])[0]
    unlabelled.backward()
    assert float(unlabelled) == 0.0


def test_proxies_have_their_own_learning_rate_and_no_decay():
    terms = [{"loss": "pml:ProxyAnchorLoss", "proxy_lr": 0.25}, {"loss": "pml:CosFaceLoss"}, {"loss": "info_nce"}]
    objective = build_objective(terms, [("a", "b")], dim=DIM, data=Rows())
    model = SimpleNamespace(
        logit_scale_parameters=lambda: [], named_parameters=lambda: [("w", nn.Parameter(torch.zeros(2, 2)))]
    )
    groups = parameter_groups(model, objective, TrainConfig(lr=0.01), objective.class_losses.lr_shares(0.01))
    of = {id(p): g for g in groups for p in g["params"]}
    proxies, centers = objective.class_losses["0"].loss.proxies, objective.class_losses["1"].loss.W
    assert of[id(proxies)]["lr"] == pytest.approx(0.25) and of[id(centers)]["lr"] == pytest.approx(1.0)
    assert of[id(proxies)]["weight_decay"] == of[id(centers)]["weight_decay"] == 0 and groups[0]["lr"] == 0.01
    again = build_objective(terms, [("a", "b")], dim=DIM, data=Rows())
    assert torch.equal(again.class_losses["0"].loss.proxies, proxies)  # the same seed, the same proxies


def test_matryoshka_trains_prefixes_by_losses_without_proxies_only():
    rows, of = [0, 1, 6, 7], Rows()
    z = {"a": unit(4, DIM, 5)}
    options = {"dim": DIM, "data": of, "matryoshka": {"dims": [4], "weights": [1.0]}}
    for name, prefix in (("SupConLoss", losses.SupConLoss()), ("ProxyAnchorLoss", None)):
        objective = build_objective([{"loss": f"pml:{name}"}], [("a", "a")], **options)
        _, logs = objective(z, batch_of(rows, of), scale_of)
        short = nn.functional.normalize(z["a"][:, :4], dim=1)
        assert logs["dim 4"] == pytest.approx(float(prefix(short, torch.tensor([0, 1, 0, 1]))) if prefix else 0.0, rel=1e-6)


def test_state_outside_parameters_is_saved():
    rows, of = [0, 1, 6, 7], Rows()
    z = {"a": unit(4, DIM, 5)}
    term = {"loss": "pml:DynamicSoftMarginLoss", "momentum": 0.3}
    whole, half = (build_objective([term], [("a", "a")], dim=DIM, data=of) for _ in range(2))
    for objective in (whole, half):
        objective(z, batch_of(rows, of), scale_of)
    resumed = build_objective([term], [("a", "a")], dim=DIM, data=of)
    resumed.load_state_dict(half.state_dict())
    other = {"a": unit(4, DIM, 8)}
    assert float(whole(other, batch_of(rows, of), scale_of)[0]) == float(resumed(other, batch_of(rows, of), scale_of)[0])


WRONG = [
    (
        {"loss": "pml:ProxyAnchorLos"},
        "objective[0].loss: pytorch-metric-learning has no loss 'ProxyAnchorLos'; did you mean 'pml:ProxyAnchorLoss'?",
    ),
    ({"loss": "pml:VICRegLoss"}, "objective[0].loss: pml:VICRegLoss takes no class labels"),
    (
        {"loss": "pml:ProxyAnchorLoss", "alhpa": 3},
        "objective[0].alhpa: ProxyAnchorLoss has no such argument; did you mean 'alpha'?",
    ),
    ({"loss": "pml:ProxyAnchorLoss", "alpha": "big"}, "objective[0].alpha: 'big' is not a number; the default is 32"),
    ({"loss": "pml:TripletMarginLoss", "swap": 1}, "objective[0].swap: 1 is not true or false"),
    ({"loss": "pml:ProxyAnchorLoss", "num_classes": 3}, "objective[0].num_classes: is counted"),
    ({"loss": "pml:RankedListLoss", "Tn": 1}, "objective[0].margin: is missing; RankedListLoss needs it"),
    ({"loss": "pml:ArcFaceLoss", "distance": "pml:LpDistance"}, "ArcFaceLoss refuses its arguments"),
    (
        {"loss": "pml:ArcFaceLoss", "distance": "pml:LpDistanc"},
        "objective[0].distance: pytorch-metric-learning has no distance 'LpDistanc'",
    ),
    (
        {"loss": "pml:SupConLoss", "miner": {"name": "pml:HDCMiner", "percentage": 1}},
        "objective[0].miner.percentage: HDCMiner has no such",
    ),
    ({"loss": "pml:SupConLoss", "miner": 3}, "objective[0].miner"),
    ({"loss": "pml:SupConLoss", "directions": "forward"}, "objective[0].directions: SupConLoss has no such argument"),
    ({"loss": "pml:SupConLoss", "weight": -1}, "weights must be 0 or more"),
    ({"loss": "pml:SupConLoss", "proxy_lr": 0}, "objective[0].proxy_lr: 0.0 is not positive"),
]


@pytest.mark.parametrize("term,message", WRONG)
def test_mistakes_are_one_line_before_the_first_step(term, message):
    with pytest.raises(RecipeError) as e:
        build_objective([term], [("a", "b")], dim=DIM, data=Rows())
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_failure_of_the_library_names_the_term():
    with pytest.raises(TrainingError, match=r"objective\[0\]: pml:SmoothAPLoss failed: ValueError: All classes must"):
        through_us({"loss": "pml:SmoothAPLoss"}, {"a": unit(4, DIM, 5)}, Rows(), [0, 1, 6, 8])


@class_label_loss
class NearestMean(nn.Module):
    """Cross-entropy over learned class means."""

    def __init__(self, num_classes: int, embedding_size: int, sharpness: float = 8.0):
        super().__init__()
        self.means, self.sharpness = nn.Parameter(torch.randn(num_classes, embedding_size)), sharpness

    def forward(self, embeddings, labels):
        return nn.functional.cross_entropy(-self.sharpness * torch.cdist(embeddings, self.means), labels)


def test_a_loss_from_outside_gets_classes_proxies_and_options():
    rows, of = [0, 1, 6, 7], Rows()
    z = unit(4, DIM, 5)
    spec = "tests.losses.test_metric_learning:NearestMean"
    loss, objective = through_us({"loss": spec, "sharpness": 2.0, "proxy_lr": 0.1}, {"a": z}, of, rows)
    means = objective.class_losses["0"].loss.means
    assert means.shape == (6, DIM) and objective.class_losses.lr_shares(0.01) == {id(means): pytest.approx(10)}
    want = nn.functional.cross_entropy(-2 * torch.cdist(z, means), torch.tensor([0, 1, 0, 1]))
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    with pytest.raises(RecipeError, match="has no such argument; did you mean 'sharpness'"):
        through_us({"loss": spec, "sharpnes": 2.0}, {"a": z}, of, rows)
    before = dict(TABLE)
    try:
        mmtune.register_loss("nearest_mean", NearestMean)
        assert float(through_us({"loss": "nearest_mean", "sharpness": 2.0}, {"a": z}, of, rows)[0]) == pytest.approx(
            float(want)
        )
    finally:
        TABLE.clear()
        TABLE.update(before)


def test_the_recipe_keeps_the_term():
    document = {
        "model": "m",
        "data": {"train": "x"},
        "objective": [{"loss": "pml:ProxyAnchorLoss", "label": "sku", "alpha": 16}],
    }
    term = Recipe.parse(document).objective[0]
    assert type(term).__name__ == "ClassLabelTerm" and term.label == "sku" and term.options == {"alpha": 16}
    again = Recipe.parse(Recipe.parse(document).model_dump(mode="json"))
    assert again.objective[0] == term
