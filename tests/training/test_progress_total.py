"""The progress of training counts the pairs that are trained on: it ends at its total, also where batches are not full."""

import pytest

import mmtune
from mmtune.runtime.progress import Progress
from mmtune.training import loop
from tests.support import corpora


@pytest.mark.parametrize("read", ["index", "stream"])
@pytest.mark.parametrize("train", [{"epochs": 2}, {"epochs": 1.5}, {"samples": 45}])
def test_it_ends_at_its_total(tmp_path, monkeypatch, read, train):
    shown = []

    class Recorded(Progress):
        def __exit__(self, *error):
            shown.append((self.done, self.total))
            super().__exit__(*error)

    monkeypatch.setattr(loop, "Progress", Recorded)
    data = {"train": corpora.packed(tmp_path, 30, 0, ("image", "text")), "read": read}
    options = {"batch_size": 16, "gradient_accumulation_steps": 2, "precision": "fp32", "warmup": 0, "lr": 1e-4, **train}
    recipe = {"model": "tiny:clip", "data": data, "train": options, "run": {"dir": str(tmp_path / "run")}}
    result = mmtune.train(recipe, quiet=True)
    ((done, total),) = shown
    assert done == result.pairs
    if read == "index" or train == {"epochs": 2}:
        assert done == total  # streamed, the last step may go past the number that was asked for
    else:
        assert total == 45 <= done
    if train == {"epochs": 2}:
        assert total == 60
