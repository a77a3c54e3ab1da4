"""Heads that are fitted to the training pairs: the solutions are those of scikit-learn, and step 0 already retrieves."""

import warnings

import numpy as np
import pytest
import torch

import mmtune
from mmtune.data.decode import decode_row
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.embedding import feature_cache
from mmtune.errors import DataError, DataWarning, RecipeError
from mmtune.model.heads import HeadKind, build_head, signed_power
from mmtune.recipe.heads_block import Head
from mmtune.reporting.subject import report_subject
from mmtune.training.head_initialisation import cca, initialise_heads, ridge
from mmtune.training.tuning.adapter_files import load_adapters
from tests.support import corpora

MODEL = {"image": "tiny:image@1", "text": "tiny:text@2"}
PAIR = [("image", "text")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpora.packed(tmp_path_factory.mktemp("data"), rows=48, columns=("image", "text"))


def concat(data) -> WeightedConcat:
    return WeightedConcat([open_data(data)], [1.0])


def hit_at_1(model, data) -> float:
    """Share of images whose nearest text is one of their colour."""
    evaluated = mmtune.evaluate(model, data, allow_trained=True)
    return evaluated.directions["image->text"].metrics["hit@1"]


def test_ridge_equals_scikit_learn():
    from sklearn.linear_model import Ridge

    noise = np.random.default_rng(0)
    x, y = noise.standard_normal((50, 7)) + 3, noise.standard_normal((50, 4))
    weight, bias = ridge(torch.from_numpy(x), torch.from_numpy(y), 0.3)
    alpha = 0.3 * x.var(0).mean() * len(x)
    theirs = Ridge(alpha=alpha).fit(x, y)
    np.testing.assert_allclose(weight, theirs.coef_, atol=1e-10)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=1e-10)


def test_cca_finds_the_shared_directions():
    """Without regularisation the correlations are those of the definition: singular values of the whitened cross-covariance."""
    noise = np.random.default_rng(0)
    shared = noise.standard_normal((400, 2))
    x = np.hstack([shared, noise.standard_normal((400, 4))]) @ noise.standard_normal((6, 6))
    y = np.hstack([shared + 0.1 * noise.standard_normal((400, 2)), noise.standard_normal((400, 1))]) @ noise.standard_normal(
        (3, 3)
    )
    (wx, bx), (wy, by) = cca(torch.from_numpy(x), torch.from_numpy(y), 8, (1e-9, 1e-9))
    u, v = x @ wx.numpy().T + bx.numpy(), y @ wy.numpy().T + by.numpy()
    np.testing.assert_allclose(u.mean(0), 0, atol=1e-9)
    assert np.all(u[:, 3:] == 0) and np.all(v[:, 3:] == 0)  # 8 dimensions, but only 3 directions
    correlations = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3)]
    from scipy.linalg import sqrtm

    x, y = x - x.mean(0), y - y.mean(0)
    whitened = np.linalg.inv(sqrtm(x.T @ x)) @ x.T @ y @ np.linalg.inv(sqrtm(y.T @ y))
    np.testing.assert_allclose(correlations, np.linalg.svd(whitened)[1][:3], atol=1e-6)
    assert correlations[1] > 0.98 > 0.3 > correlations[2]
    np.testing.assert_allclose(u[:, :3].std(0), correlations, atol=1e-6)  # each direction is scaled by its correlation
    assert abs(u[:, 0] @ u[:, 1]) < 1e-4


HEADS = {
    "ridge": {"image": Head(init="ridge")},
    "ridge-mlp": {"image": Head(type="mlp", init="ridge", hidden=16)},
    "cca": {"image": Head(init="cca"), "text": Head(init="cca")},
}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_step_0_retrieves_and_the_head_is_saved(data, tmp_path, heads):
    model = mmtune.load(MODEL)
    before = hit_at_1(model, data)
    base = model.fingerprint
    initialise_heads(model, heads, concat(data), PAIR, seed=0)
    assert hit_at_1(model, data) >= max(0.9, before + 0.3)
    assert model.fingerprint != base
    model.save(tmp_path / "artifact")
    again = mmtune.load(str(tmp_path / "artifact"))
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode(text=["red", "blue"]), model.encode(text=["red", "blue"]))


def test_the_mlp_adds_nothing_before_the_first_step(data):
    both = []
    for heads in ("ridge", "ridge-mlp"):
        model = mmtune.load(MODEL)
        initialise_heads(model, HEADS[heads], concat(data), PAIR, seed=0)
        both.append(model)
    x = torch.randn(5, 64)
    torch.testing.assert_close(both[0].heads["image"](x), both[1].heads["image"](x))
    both[1].heads["image"](x).sum().backward()
    assert both[1].heads["image"].down.weight.grad.abs().sum() > 0


def test_a_run_starts_from_the_fitted_heads_and_adapters_keep_them(data, tmp_path):
    recipe = {
        "model": MODEL,
        "data": {"train": data},
        "heads": {"image": {"type": "mlp", "hidden": 8, "init": "ridge"}},
        "tune": {"image": {"how": "lora", "rank": 2}, "text": "frozen"},
        "train": {"epochs": 1, "batch_size": 16, "lr": 1e-6, "warmup": 0},
        "run": {"dir": str(tmp_path / "run")},
    }
    result = mmtune.train(recipe, quiet=True)
    tuned = mmtune.load(str(result.artifact))
    assert hit_at_1(tuned, data) >= 0.9
    from_adapters = load_adapters(tmp_path / "run" / "adapters")
    assert from_adapters.fingerprint == tuned.fingerprint
    assert from_adapters.head_kinds["image"].hidden == 8


def test_cca_uses_the_ridge_of_each_side(data):
    """The second side's was ignored."""
    found = []
    for image, text in ((0.1, 0.1), (0.1, 0.9), (0.9, 0.1)):
        model = mmtune.load(MODEL)
        heads = {"image": Head(init="cca", ridge=image), "text": Head(init="cca", ridge=text)}
        initialise_heads(model, heads, concat(data), PAIR, seed=0)
        found.append(model.fingerprint)
    assert len(set(found)) == 3


def trained_from_fitted_heads(data, out, **train):
    recipe = {
        "model": MODEL,
        "data": {"train": data, "val": data, "allow_trained": True},
        "heads": {"image": {"init": "ridge"}},
        "tune": {"image": "head", "text": "frozen"},
        "train": {"epochs": 1, "batch_size": 16, "lr": 1e-6, "warmup": 0} | train,
        "run": {"dir": str(out)},
    }
    mmtune.train(recipe, quiet=True)
    return out


def test_the_fitted_heads_are_kept_as_the_base_of_the_report(data, tmp_path):
    """The base of a composed model was one with random heads, so that the fit looked like a gain of training."""
    run = trained_from_fitted_heads(data, tmp_path / "run")
    model = mmtune.load(MODEL)
    initialise_heads(model, {"image": Head(init="ridge")}, concat(data), PAIR, seed=0)
    kept = mmtune.load(str(run / "fitted_heads"))
    pictures = [decode_row(open_data(data), i, "image") for i in range(4)]
    np.testing.assert_array_equal(kept.encode(image=pictures), model.encode(image=pictures))
    assert report_subject(run).base == str(run / "fitted_heads")
    with pytest.raises(DataError, match="the base.*trained on"):
        mmtune.compare(str(run / "fitted_heads"), MODEL, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*by chance")
        compared = mmtune.compare(str(run / "fitted_heads"), str(run / "artifact"), data, allow_trained=True)
    lead = compared.directions["image->text"]
    assert lead.base >= 0.9 and abs(lead.difference) < 0.1


def test_scores_by_chance_are_said(data, tmp_path):
    with pytest.warns(
        DataWarning, match="the model: its towers .* finds image and text of each other by chance; train it first"
    ):
        mmtune.evaluate(mmtune.load(MODEL), data)
    run = trained_from_fitted_heads(data, tmp_path / "run")
    with pytest.warns(DataWarning, match="the base: its towers"):
        mmtune.report(run, tmp_path / "r.html", base=MODEL, allow_trained=True)
    assert "Before tuning: its towers" in (tmp_path / "r.html").read_text()
    mmtune.report(run, tmp_path / "fitted.html", allow_trained=True)
    assert "by chance" not in (tmp_path / "fitted.html").read_text()


def test_a_run_on_stored_features_computes_them_once(data, tmp_path, monkeypatch):
    encoded: list[int] = []
    encode = feature_cache.encode_in_groups

    def counted(function, inputs, count):
        encoded.append(count)
        return encode(function, inputs, count)

    monkeypatch.setattr(feature_cache, "encode_in_groups", counted)
    recipe = {
        "model": MODEL,
        "data": {"train": data},
        "heads": {"image": {"init": "ridge"}},
        "tune": {"image": "head", "text": "frozen"},
        "train": {"epochs": 1, "batch_size": 16},
        "run": {"dir": str(tmp_path / "run")},
    }
    mmtune.train(recipe, quiet=True)
    labels = open_data(data).labels
    assert sum(encoded) == len(np.unique(labels["image"])) + len(np.unique(labels["text"]))


@pytest.mark.parametrize(
    "heads, message",
    [
        ({"audio": Head()}, "heads.audio: audio is not trained here"),
        ({"image": Head(init="cca")}, "cca needs `init: cca` for the other modality"),
        ({"image": Head(init="ridge"), "text": Head(init="ridge")}, "whose own head must not be fitted"),
        (
            {"image": Head(init="cca", pairs=9), "text": Head(init="cca")},
            "heads.text.pairs: cca fits both heads to the same pairs",
        ),
    ],
)
def test_heads_that_cannot_be_fitted_are_refused(data, heads, message):
    with pytest.raises(RecipeError, match=message):
        initialise_heads(mmtune.load(MODEL), heads, concat(data), PAIR, seed=0)


def test_options_without_effect_are_refused():
    with pytest.raises(RecipeError, match="heads.image.hidden"):
        mmtune.Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "heads": {"image": {"hidden": 3}}})


def test_a_power_of_the_features_is_fitted_trained_and_saved(data, tmp_path):
    """ridge with power 0.5 is scikit-learn's Ridge on the signed square roots, and an artifact keeps the power."""
    from sklearn.linear_model import Ridge

    model = mmtune.load(MODEL)
    opened = open_data(data)
    raw = mmtune.load({"image": "tiny:image@1"}).towers["image"]
    inputs = raw.preprocess.collate([raw.preprocess(decode_row(opened, i, "image")) for i in range(len(opened))])
    with torch.no_grad():
        features = raw.encode(inputs).double().numpy()
    targets = model.encode(text=[decode_row(opened, i, "text") for i in range(len(opened))])
    initialise_heads(model, {"image": Head(init="ridge", ridge=0.2, power=0.5)}, concat(data), PAIR, seed=0)
    x = np.sign(features) * np.sqrt(np.abs(features))
    theirs = Ridge(alpha=0.2 * x.var(0).mean() * len(x)).fit(x, targets)
    expected = theirs.predict(x)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = model.encode(image=[decode_row(opened, i, "image") for i in range(len(opened))])
    np.testing.assert_allclose(ours, expected, atol=5e-3)
    plain = mmtune.load(MODEL)
    initialise_heads(plain, {"image": Head(init="ridge", ridge=0.2)}, concat(data), PAIR, seed=0)
    assert plain.fingerprint != model.fingerprint
    model.save(tmp_path / "artifact")
    again = mmtune.load(str(tmp_path / "artifact"))
    assert again.fingerprint == model.fingerprint and again.head_kinds["image"].power == 0.5
    np.testing.assert_allclose(again.encode(image=[decode_row(opened, 0, "image")]), ours[:1], atol=1e-6)


@pytest.mark.parametrize("hidden", [0, 6])
def test_powers_of_features_have_finite_gradients(hidden):
    """Many features after a ReLU are exactly 0, where the derivative of a root is infinite."""
    head = build_head(4, 3, HeadKind(bias=True, hidden=hidden, power=0.5))
    x = torch.tensor([[0.0, 0.25, -4.0, 1e-9]], requires_grad=True)
    torch.testing.assert_close(signed_power(x, 0.5)[0, :3], torch.tensor([0.0, 0.5, -2.0]), atol=2e-3, rtol=0)
    assert signed_power(x, 1.0) is x
    head(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert HeadKind.from_json(HeadKind(True, hidden, 0.5).to_json()) == HeadKind(True, hidden, 0.5)
    assert HeadKind(True, hidden).to_json() == {"bias": True, "hidden": hidden}, "the manifests of earlier versions"
