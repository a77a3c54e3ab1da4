"""Training a cross-encoder by a recipe: it learns, resumes exactly, and is a teacher and a verifier afterwards."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmtune
from mmtune.contracts import Batch
from mmtune.data.decode import decode_row
from mmtune.errors import ModelError, RecipeError
from mmtune.losses.rerank_loss import binary, softmax
from mmtune.mining.verifier import make_verifier
from mmtune.model.cross_encoder_load import load_cross_encoder
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.callbacks import Callback
from mmtune.training.checkpoint import Checkpoints
from mmtune.training.rerank_objective import RerankObjective, candidate_lists
from mmtune.training.unique_items import pair_items
from tests.support import corpora

SMALL = {
    "layers": 1,
    "width": 32,
    "attention_heads": 2,
    "negatives": 5,
    "max_tokens": 16,
    "depth": 8,
    "dropout": 0.0,
    "lr": 3e-3,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cross")


@pytest.fixture(scope="module")
def data(root):
    return corpora.packed(root, 24, 0, ("image", "text"))


def train(root, data, name, *, epochs=2, resume=False, callbacks=(), val=True, **keys):
    recipe = {
        "model": "tiny:clip",
        "cross_encoder": SMALL,
        "data": {"train": data, "val": data if val else None, "allow_trained": True},
        "pairs": [["image", "text"]],
        "tune": "frozen",
        "train": {"epochs": epochs, "batch_size": 12, "precision": "fp32", "warmup": 0, "metric": "mrr", "checkpoint_every": 1},
        "run": {"dir": str(root / name)},
        **keys,
    }
    return mmtune.train(recipe, quiet=True, resume=resume, callbacks=callbacks)


@pytest.fixture(scope="module")
def trained(root, data):
    with pytest.warns(UserWarning, match="too high"):
        return train(root, data, "run", epochs=25)


def signals(data, row):
    return decode_row(data, row, "image"), decode_row(data, row, "text")


@pytest.mark.slow
def test_it_overfits_a_small_set_and_starts_from_the_first_stage(trained):
    for scores in trained.metrics["reranked_directions"].values():
        assert scores["reranked"]["mrr"] > scores["first_stage"]["mrr"] + 0.1
    assert "candidates re-ranked: hit@1" in str(trained)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch(trained, data):
    model, rows = load_cross_encoder(trained.artifact), mmtune.open_data(data)
    assert model.fingerprint == trained.fingerprint
    pairs = [(signals(rows, i)[0], signals(rows, j)[1]) for i in range(4) for j in range(5)]
    together = model.score(pairs)
    alone = [model.score([p])[0] for p in pairs]
    assert np.allclose(together, alone, atol=1e-4)
    assert np.allclose(model.score([(t, i) for i, t in pairs]), together, atol=1e-5)  # in either order
    longer = model.score([*pairs, (pairs[0][0], "a very long caption " * 20)])
    assert np.allclose(longer[:-1], together, atol=1e-4)


def test_the_untrained_layers_give_the_logit_of_the_dual_encoder(data):
    from mmtune.model.cross_encoder import new_cross_encoder
    from mmtune.recipe.cross_encoder_block import CrossEncoderBlock

    dual, rows = mmtune.load("tiny:clip"), mmtune.open_data(data)
    image, text = signals(rows, 0)
    model = new_cross_encoder(dual, CrossEncoderBlock(**SMALL), [("image", "text")], {"image": image, "text": text}).eval()
    cosine = float(dual.encode(image=image) @ dual.encode(text=text))
    assert model.score([(image, text)])[0] == pytest.approx(cosine * dual.logit_scale("image", "text")[0].item(), abs=1e-4)


class StopAfter(Callback):
    def on_step(self, context, metrics):
        if context.step == 3:
            raise KeyboardInterrupt


def test_a_killed_run_resumes_to_the_same_weights(root, data):
    with pytest.warns(UserWarning, match="too high"):
        whole = train(root, data, "whole", tune="full")
        with pytest.raises(KeyboardInterrupt):
            train(root, data, "killed", tune="full", callbacks=[StopAfter()])
        resumed = train(root, data, "killed", tune="full", resume=True)
    assert resumed.fingerprint == whole.fingerprint
    states = [Checkpoints(root / name / "checkpoints", 1).load("last")[0] for name in ("whole", "killed")]
    assert all(torch.equal(states[0]["model"][k], v) for k, v in states[1]["model"].items())
    assert any(k.startswith("joint.") for k in states[0]["model"])


@pytest.mark.slow
def test_it_is_a_teacher_and_a_verifier_by_its_path(root, data, trained):
    out = mmtune.train(
        {
            "model": "tiny:clip@1",
            "data": {"train": data},
            "pairs": [["image", "text"]],
            "teachers": {"judge": {"scorer": trained.artifact, "candidates": "all", "out": str(root / "scores")}},
            "objective": [{"loss": "margin_mse", "teacher": "judge", "factor": 0.02}],
            "train": {"epochs": 1, "batch_size": 12, "precision": "fp32", "warmup": 0},
            "run": {"dir": str(root / "student")},
        },
        quiet=True,
    )
    assert out.steps == 2
    verifier, rows = make_verifier(trained.artifact), mmtune.open_data(data)
    pairs = [signals(rows, 0), (signals(rows, 0)[0], signals(rows, 5)[1])]
    assert verifier.score(pairs) == pytest.approx(load_cross_encoder(trained.artifact).score(pairs))


def test_losses_equal_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, generator=generator)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False], [True] + [False] * 4, [True] * 4 + [False]])
    scores = scores.masked_fill(~valid, -torch.inf)
    listwise, pointwise = [], []
    for row, ok in zip(scores.tolist(), valid.tolist(), strict=True):
        kept = [s for s, v in zip(row, ok, strict=True) if v]
        listwise.append(-kept[0] + np.log(np.exp(kept).sum()))
        negative = [np.log1p(np.exp(s)) for s in kept[1:]]
        pointwise.append(np.log1p(np.exp(-kept[0])) + (np.mean(negative) if negative else 0.0))
    assert float(softmax(scores, valid)) == pytest.approx(np.mean(listwise), rel=1e-5)
    assert float(binary(scores, valid)) == pytest.approx(np.mean(pointwise), rel=1e-5)


def test_negatives_are_mined_ones_first_and_never_positives():
    rows = 5  # row 4 is only a mined candidate, of the query in row 0; rows 0 and 1 have the same group
    every = torch.arange(rows)
    labels = {"id": every + 1, "group": torch.tensor([7, 7, 8, 9, 10]), "image": every + 1, "text": every + 1}
    batch = Batch(
        ids=list("abcde"),
        index=every,
        is_query=torch.tensor([True] * 4 + [False]),
        inputs={},
        item_of_row={"image": every, "text": every},
        labels=labels,
        hard_negatives={"image->text": torch.tensor([[0], [4]])},
    )
    items = pair_items(batch, ("image", "text"))
    cosine = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).tanh()
    lists = candidate_lists(batch, ("image", "text"), items, cosine[:4], items.positives.block(0, 4), 2)
    group = labels["group"].tolist()
    for query, candidates, valid in zip(*(x.tolist() for x in lists), strict=True):
        mined = [4] if query == 0 else []
        others = sorted((c for c in range(4) if group[c] != group[query]), key=lambda c: -float(cosine[query, c]))
        assert candidates[0] == query and valid[0]
        assert [c for c, v in zip(candidates[1:], valid[1:], strict=True) if v] == (mined + others)[:2]


@pytest.mark.parametrize("loss", [softmax, binary])
@pytest.mark.parametrize("count", [2, 20])
def test_the_shares_of_several_processes_add_up_to_the_loss_and_the_gradient(data, loss, count):
    """20 processes are more than there are lists: then some have none."""
    from mmtune.model.cross_encoder import new_cross_encoder
    from mmtune.recipe.cross_encoder_block import CrossEncoderBlock

    rows, every = mmtune.open_data(data), torch.arange(6)
    values = {m: [signals(rows, i)[side] for i in range(6)] for side, m in enumerate(("image", "text"))}
    examples = {m: v[0] for m, v in values.items()}
    model = new_cross_encoder(mmtune.load("tiny:clip"), CrossEncoderBlock(**SMALL), [("image", "text")], examples).eval()
    torch.nn.init.normal_(model.joint.head.weight, generator=torch.Generator().manual_seed(0))
    states = {m: model.packed_values(m, v) for m, v in values.items()}
    labels = {"id": every + 1, "group": torch.tensor([7, 7, 8, 9, 10, 11]), "image": every + 1, "text": every + 1}
    items = {"image": every, "text": every}
    batch = Batch(
        ids=list("abcdef"), index=every, is_query=torch.ones(6, dtype=torch.bool), inputs={}, item_of_row=items, labels=labels
    )

    def parts(processes):
        """Loss, logs, and gradients of states and layers, summed over the processes."""
        model.zero_grad()
        z = {m: x.clone().requires_grad_() for m, x in states.items()}
        total, logs = 0.0, {}
        for p in processes:
            value, named = RerankObjective(model, [("image", "text")], loss, 3, p)(z, batch, model.logit_scale)
            value.backward()
            total += float(value.detach())
            logs = {k: logs.get(k, 0.0) + v for k, v in named.items()}
        return total, logs, [*(x.grad for x in z.values()), *(p.grad for p in model.joint.parameters())]

    whole, shared = parts([SINGLE_PROCESS]), parts([Processes(rank, count) for rank in range(count)])
    assert shared[0] == pytest.approx(whole[0], rel=1e-5) and shared[1] == pytest.approx(whole[1], rel=1e-5)
    assert set(whole[1]) == {"image->text", "text->image"} and len(whole[2]) > 10
    for a, b in zip(whole[2], shared[2], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_pairs_of_one_modality_are_trained_by_group(root, data):
    grouped = corpora.packed(root / "grouped", 24, 2, ("image", "text"))
    out = train(root, grouped, "images", pairs=[["image", "image"]], val=False)
    model, rows = load_cross_encoder(out.artifact), mmtune.open_data(grouped)
    first, second = signals(rows, 0)[0], signals(rows, 6)[0]
    assert model.joint.pairs == [("image", "image")] and np.isfinite(model.score([(first, second)])).all()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"objective": ["info_nce"]}, "leave `objective` out"),
        ({"memory": {"size": 8}}, "memory is for dual encoders"),
        ({"retention": {"data": "other", "at_most": 0.1}}, "retention is for dual encoders"),
        ({"cross_encoder": {"width": 30, "attention_heads": 4}}, "not a multiple"),
    ],
)
def test_what_does_not_fit_is_refused(root, data, keys, said):
    with pytest.raises(RecipeError, match=said):
        train(root, data, "refused", **keys)


@pytest.mark.slow
def test_a_damaged_cross_encoder_is_not_loaded(root, trained, tmp_path):
    import shutil

    copy = Path(shutil.copytree(trained.artifact, tmp_path / "copy"))
    manifest = json.loads((copy / "cross_encoder.json").read_text())
    (copy / "cross_encoder.json").write_text(json.dumps(manifest | {"pairs": [["text", "image"]]}))
    with pytest.raises(ModelError, match="edited or damaged"):
        load_cross_encoder(copy)
    with pytest.raises(ModelError, match="not a cross-encoder"):
        load_cross_encoder(tmp_path)
    with pytest.raises(ModelError, match="load_cross_encoder"):
        mmtune.load(trained.artifact)
