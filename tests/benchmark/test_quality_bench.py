"""`mmtune bench quality` on small random towers: every method scores, cells are kept, and its numbers are those of other hands."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.benchmark.quality_bench import METHODS
from mmtune.benchmark.quality_features import draw_shots
from mmtune.benchmark.quality_result import Cell, QualityResult
from mmtune.cli import main
from mmtune.errors import DataError, RecipeError
from mmtune.runtime.files import read_json
from tests.support import corpora

TOWERS = {"image": "tiny:image@1", "text": "tiny:text@2"}
SHORT = ["train.epochs=1", "train.batch_size=8", "train.warmup=0"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A set: train of 48 rows, val of 16 others."""
    root = tmp_path_factory.mktemp("shop")
    corpora.packed(root / "train", rows=48, seed=0, columns=("image", "text"))
    corpora.packed(root / "val", rows=16, seed=1, columns=("image", "text"))
    return root


def test_every_method_scores_and_a_second_call_reads(shop, tmp_path):
    pytest.importorskip("sentence_transformers")
    print(list(shop.rglob("*")))
