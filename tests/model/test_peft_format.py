"""RUN/adapters is read by peft itself, on the base as transformers loads it, with the vectors of the tuned model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmtune
from tests.support import checkpoints, corpora

TEXTS = ["a red bag", "a photo of a dog", "boots"]


def tuned(tmp_path, model, tune):
    recipe = {
        "model": model,
        "data": {"train": corpora.packed(tmp_path, 16, 0, ("image", "text"))},
        "tune": tune,
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.05, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }
    return mmtune.load(mmtune.train(recipe, quiet=True).artifact), tmp_path / "run" / "adapters"


@pytest.mark.parametrize(
    "tune", [{"how": "lora", "rank": 2}, {"image": {"how": "lora", "rank": 2}, "text": {"how": "lora", "rank": 3, "alpha": 1}}]
)
def test_peft_gives_the_vectors_of_the_tuned_model(tune, tmp_path):
    from peft import PeftModel
    from transformers import CLIPModel

    directory = checkpoints.clip(tmp_path / "clip")
    model, adapters = tuned(tmp_path, f"hf:{directory}", tune)
    base = CLIPModel.from_pretrained(directory, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, adapters).eval().get_base_model()
    inputs = model.towers["text"].preprocess
    batch = inputs.collate([inputs(t) for t in TEXTS])
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(theirs.get_text_features(**batch).pooler_output, dim=-1).numpy()
    np.testing.assert_allclose(vectors, model.encode(text=TEXTS), atol=1e-5)
    assert np.abs(vectors - mmtune.load(f"hf:{directory}").encode(text=TEXTS)).max() > 1e-3  # the adapters do something
    state = load_file(adapters / "adapter_model.safetensors")
    assert state and all(k.startswith("base_model.model.") and k.endswith((".lora_A.weight", ".lora_B.weight")) for k in state)
    note = json.loads((adapters / "adapters.json").read_text())["peft"]
    assert note.startswith("PeftModel.from_pretrained(base, DIR) reads adapter_config.json")


def test_where_peft_cannot_the_file_says_so(tmp_path):
    directory = checkpoints.open_clip_dir(tmp_path / "open_clip")
    _, adapters = tuned(tmp_path, f"open_clip:{directory}", {"how": "lora", "rank": 2})
    note = json.loads((adapters / "adapters.json").read_text())["peft"]
    assert note.startswith("not saved in PEFT's format: the towers have the model family open_clip")
    assert not (adapters / "adapter_config.json").exists()
