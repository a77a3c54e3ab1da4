"""Batches with augmentations of libraries: equal for any number of threads, and in an epoch that is loaded again."""

import numpy as np
import pytest
import torch

from mmtune.data.loader.loader import Loader
from mmtune.data.loader.mixup import make_augmentation
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.recipe.recipe import Recipe
from tests.support import corpora

STEPS = {
    "image": [{"rand_augment": {}}, {"torchvision": {"name": "RandomAffine", "degrees": 20}, "p": 0.5}, "random_erasing"],
    "audio": [{"speed": [0.9, 1.1], "p": 0.5}, {"audiomentations": {"name": "AddGaussianSNR"}}, "mask_spectrogram"],
    "text": [{"templates": ["{}", "a photo of {}", "one {}"]}],
}


class Bytes:
    """Preprocessing to the first numbers of a signal."""

    def __call__(self, signal, rng=None):
        if isinstance(signal, str):
            values = np.frombuffer(signal.encode()[:8].ljust(8), np.uint8)
        else:
            values = (np.asarray(signal) if not hasattr(signal, "samples") else signal.samples).ravel()[:4000]
        return {"x": torch.from_numpy(np.array(values, np.float32)), "n": torch.tensor(len(getattr(signal, "samples", "")))}

    def collate(self, items):
        width = max(len(i["x"]) for i in items)
        padded = [torch.nn.functional.pad(i["x"], (0, width - len(i["x"]))) for i in items]
        return {"x": torch.stack(padded), "n": torch.stack([i["n"] for i in items])}


@pytest.mark.parametrize("modality", STEPS)
def test_threads_and_a_second_pass_do_not_change_batches(tmp_path, modality):
    names = (modality, "text") if modality != "text" else ("image", "text")
    data = WeightedConcat([open_data(corpora.packed(tmp_path, 16, 0, names))], [1.0])
    recipe = Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "augment": {modality: STEPS[modality]}})
    augment = {modality: make_augmentation(recipe.augment[modality], data)}
    rows = [np.arange(0, 8), np.arange(8, 16)]

    def inputs(workers, epoch, batches=rows):
        loader = Loader(data, {modality: Bytes()}, augment, seed=3, workers=workers)
        return [batch.inputs[modality]["x"] for batch in loader.epoch(epoch, batches)]

    one, four = inputs(1, 0), inputs(4, 0)
    torch.manual_seed(9)
    again = inputs(4, 0, rows[1:])  # as after a resume in the middle of the epoch
    for a, b in zip(one, four, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one[1], again[0])
    other = inputs(4, 1)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True))
