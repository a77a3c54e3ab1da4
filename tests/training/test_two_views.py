"""Two views of an item as a positive pair: SimCSE and SimCLR against their formulas, beside other terms, and rows without a partner."""

import numpy as np
import pytest
import torch
from torch import nn

import mmtune
from mmtune.contracts import Batch, second_view
from mmtune.errors import RecipeError
from mmtune.training.build_objective import build_objective
from mmtune.training.loop import Trainer
from tests.support import checkpoints, corpora
from tests.training.test_controls import recipe, series, weights


def batch_of(n, groups=None):
    """n rows with one item each of "a", in two views; group 0: none."""
    rows = torch.arange(n)
    labels = {"id": rows + 1, "group": torch.tensor(groups or [0] * n), "a": rows + 100}
    items = {"a": rows, second_view("a"): rows}
    return Batch([str(i) for i in range(n)], rows, torch.ones(n, dtype=torch.bool), {}, items, labels)


def vectors(n=6, dim=8):
    torch.manual_seed(3)
    return {k: nn.functional.normalize(torch.randn(n, dim), dim=1).requires_grad_() for k in ("a", second_view("a"))}


def loss_of(how, batch, z, **options):
    objective = build_objective([{"loss": "info_nce", "views": {"a": how}, **options}], [("a", "a")])
    return objective(z, batch, lambda a, b: (torch.tensor(1.0), None))


def test_dropout_views_are_simcse():
    z = vectors()
    loss, logs = loss_of("dropout", batch_of(6), z, directions="forward")
    logits = 20 * z["a"] @ z["a+view"].T
    assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(logits, torch.arange(6))), rel=1e-6)
    assert logs.keys() == {"info_nce"}
    both, _ = loss_of("dropout", batch_of(6), z, scale=5.0)
    each = [nn.functional.cross_entropy(s, torch.arange(6)) for s in (logits / 4, logits.T / 4)]
    assert float(both) == pytest.approx(float(sum(each)) / 2, rel=1e-6)


def test_augmentation_views_are_simclrs_nt_xent():
    z = vectors()
    loss, _ = loss_of("augmentation", batch_of(6), z, scale=2.0)
    every = torch.cat([z["a"], z["a+view"]])
    logits = (2 * every @ every.T).fill_diagonal_(-torch.inf)
    want = nn.functional.cross_entropy(logits, torch.arange(12).roll(6))
    assert float(loss) == pytest.approx(float(want), rel=1e-6)


def test_group_mates_are_no_negatives():
    z, batch = vectors(), batch_of(6, [1, 1, 0, 0, 0, 0])
    loss, _ = loss_of("dropout", batch, z, directions="forward", positives="mask")
    logits = 20 * z["a"].detach() @ z["a+view"].detach().T
    logits[0, 1] = logits[1, 0] = -torch.inf
    assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(logits, torch.arange(6))), rel=1e-6)


def test_what_cannot_be_viewed_is_refused(tmp_path):
    z = vectors()
    z["a+view"] = z["a"]
    with pytest.raises(RecipeError, match="two views of a are equal, because its tower has no dropout"):
        loss_of("dropout", batch_of(6), z)
    for change, message in (
        ({"loss": "mse", "views": {"a": "dropout"}}, r"objective\[0\]\.views: mse is no contrastive loss"),
        ({"loss": "info_nce", "views": {"a": "dropout"}, "pairs": [["a", "a"]]}, r"objective\[0\]\.pairs: has no effect"),
    ):
        with pytest.raises(RecipeError, match=message):
            build_objective([change], [("a", "a")])
    for objective, message in (
        (
            [{"loss": "info_nce", "views": {"image": "augmentation"}}],
            r"two views of image by augmentation need.*augment\.image",
        ),
        ([{"loss": "info_nce", "views": {"audio": "dropout"}}], "audio must be in model and data"),
        ([{"loss": "info_nce", "views": {"text": "drop"}}], r"objective\[0\]\.views\.text: .*'drop'"),
        (
            [{"loss": "info_nce", "views": {"text": "dropout"}}, {"loss": "sigmoid", "views": {"text": "augmentation"}}],
            "two terms make the views of text differently",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            mmtune.train(recipe(tmp_path, tmp_path / "run", {}, objective=objective), quiet=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("views")


def test_beside_another_term_with_rows_without_a_partner_and_resumed(root, tmp_path, monkeypatch):
    """24 pairs, and 12 pictures without words that only the views train. Micro-batches change nothing but rounding."""
    alone = corpora.packed(root, 12, 7, ("image",))
    terms = ["info_nce", {"loss": "info_nce", "views": {"image": "augmentation"}, "weight": 0.5}]
    blocks = {"objective": terms, "augment": {"image": {"crop": 0.6, "flip": True}}}
    blocks["data"] = {"train": [corpora.packed(root), alone], "val": corpora.packed(root, 12, 1)}
    seen, step = set(), Trainer.step

    def watched(self, batch):
        assert second_view("image") in batch.inputs and second_view("text") not in batch.inputs
        pixels = batch.inputs["image"]["planes"], batch.inputs["image+view"]["planes"]
        assert pixels[0].shape == pixels[1].shape and not torch.equal(*pixels)
        seen.update(batch.ids)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", watched)
    out = mmtune.train(recipe(root, tmp_path / "whole", {"checkpoint_every": 2}, **blocks), quiet=True)
    assert len(seen) == 36 and out.pairs == 72
    assert all(r["info_nce[1]"] > 0 for r in series(tmp_path / "whole") if "loss" in r)

    def killed(self, batch):
        if self.state.step == 5:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", killed)
    parts = recipe(root, tmp_path / "parts", {"checkpoint_every": 2}, **blocks)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(parts, quiet=True)
    monkeypatch.undo()
    mmtune.train(parts, resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    mmtune.train(recipe(root, tmp_path / "micro", {"micro_batch_size": 3}, **blocks), quiet=True)
    losses = [[r["loss"] for r in series(tmp_path / run) if "loss" in r] for run in ("whole", "micro")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


def test_dropout_alone_trains_a_tower_on_captions_without_pairs(root, tmp_path):
    """A BERT with dropout 0.1, as SimCSE; a tower without dropout is refused at the first step."""
    captions = corpora.packed(root, 12, 8, ("text",))
    folder = checkpoints.text_encoder(tmp_path / "bert", "mean")
    terms = [{"loss": "info_nce", "views": {"text": "dropout"}}]
    config = recipe(
        root, tmp_path / "run", {"epochs": 1}, objective=terms, data={"train": captions}, model={"text": f"hf:{folder}"}
    )
    out = mmtune.train(config, quiet=True)
    assert out.pairs == 12 and all(r["loss"] > 0 for r in series(tmp_path / "run"))
    config = recipe(root, tmp_path / "tiny", {"epochs": 1}, objective=terms, data={"train": captions})
    with pytest.raises(RecipeError, match="two views of text are equal.*how: lora, dropout"):
        mmtune.train(config, quiet=True)
