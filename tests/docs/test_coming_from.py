"""The pages for users of other libraries: what they name exists there, and losses that are said to be equal are."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import normalize

import mmtune
from mmtune.losses import ContrastiveBlock, ScoredPairs
from mmtune.losses.contrastive import RowPairs
from mmtune.losses.graded import cosent, mse
from mmtune.losses.info_nce import info_nce
from mmtune.losses.sigmoid import sigmoid
from tests.support.docs_helpers import ROOT

PAGES = {p.stem: p.read_text() for p in sorted((ROOT / "docs").glob("from_*.md"))}
N, D, SCALE = 12, 16, 20.0


def cells(page: str, column: int) -> str:
    """The text of one column of all tables of a page."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGES[page].split("\n") if line.startswith("| ")]
    return "\n".join(row[column] for row in rows)


def test_there_are_three_pages() -> None:
    assert list(PAGES) == ["from_laion_clap", "from_open_clip", "from_sentence_transformers"]


def test_losses_of_sentence_transformers_exist() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    named = set(re.findall(r"`(\w+Loss)\b", cells("from_sentence_transformers", 0)))
    assert len(named) >= 14 and not [n for n in named if not hasattr(losses, n)]


def test_flags_of_open_clip_exist() -> None:
    spec = importlib.util.find_spec("open_clip_train")
    assert spec and spec.submodule_search_locations
    flags = set(re.findall(r'"(--[\w-]+)"', (Path(spec.submodule_search_locations[0]) / "params.py").read_text()))
    named = set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", cells("from_open_clip", 0)))
    assert len(named) >= 20 and not named - flags


def test_terms_and_keys_are_those_of_recipes() -> None:
    """Every `{loss: ...}` and every `train.key` of the tables is accepted."""
    count = 0
    for page in PAGES:
        text = cells(page, 1) + PAGES[page]
        for found in dict.fromkeys(re.findall(r"`(\{loss: [^`]*\})`", text)):
            term = yaml.safe_load(found.replace("margin: ...", "margin: 0.1"))
            name = term.get("teacher") or term.get("guide")
            teachers = {name: {"model": "tiny:clip"}} if name else {}
            mmtune.Recipe.read(
                {"model": "tiny:clip", "data": {"train": "a"}, "objective": [{"loss": "info_nce"}, term], "teachers": teachers}
            )
            count += 1
        for key in dict.fromkeys(re.findall(r"`((?:train|data)\.[a-z_]+)", text)):
            block, name = key.split(".")
            field = mmtune.Recipe.model_fields[block].annotation
            assert name in field.model_fields, key  # type: ignore[union-attr]
            count += 1
    assert count >= 30


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return normalize(torch.randn(N, D), dim=1), normalize(torch.randn(N, D), dim=1)


def block(a: torch.Tensor, b: torch.Tensor, scale: float = SCALE, bias: float | None = None) -> ContrastiveBlock:
    """N pairs of which no two show the same."""
    own = torch.eye(N, dtype=torch.bool)
    pairs = RowPairs(torch.arange(N), torch.arange(N), torch.ones(N))
    return ContrastiveBlock(a @ b.T, own, ~own, pairs, torch.tensor(scale), None if bias is None else torch.tensor(bias))


class Nothing(torch.nn.Module):
    """A stand-in for the model argument of their losses, which compute from vectors here."""


def test_multiple_negatives_ranking_is_info_nce_forward() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    a, b = vectors()
    theirs = losses.MultipleNegativesRankingLoss(Nothing(), scale=SCALE).compute_loss_from_embeddings([a, b], None)
    assert torch.allclose(theirs, info_nce(block(a, b)).mean(), atol=1e-6)


def test_cosent_and_cosine_similarity_losses_are_equal() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    (a, b), score = vectors(), torch.tensor([0.0, 0.5, 1.0] * 4)
    pairs = ScoredPairs((a * b).sum(1), score)
    assert torch.allclose(losses.CoSENTLoss(Nothing()).compute_loss_from_embeddings([a, b], score), cosent(pairs), atol=1e-5)
    theirs = losses.CosineSimilarityLoss(Nothing()).compute_loss_from_embeddings([a, b], score)
    assert torch.allclose(theirs, mse(pairs), atol=1e-6)


def test_losses_of_open_clip_are_equal() -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    a, b = vectors()
    scale, bias = torch.tensor(SCALE), torch.tensor(-10.0)
    both = (info_nce(block(a, b), positives="mask").mean() + info_nce(block(b, a), positives="mask").mean()) / 2
    assert torch.allclose(ClipLoss()(a, b, scale), both, atol=1e-6)
    theirs = SigLipLoss()(a, b, scale, logit_bias=bias)
    assert torch.allclose(theirs, sigmoid(block(a, b, bias=-10.0)).mean(), atol=1e-5)
