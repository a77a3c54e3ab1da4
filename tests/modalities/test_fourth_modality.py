"""A fourth modality is one class and one registration: here, inside a test; it goes through pack, train, embed and eval."""

import csv
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mmtune
from mmtune import modalities
from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.contracts import Modality
from mmtune.data.pack.pack import pack
from mmtune.errors import Rejected


class Vibration(Modality):
    """Readings of three axes, as raw little-endian float32."""

    name = "vibration"
    extensions = ("vib",)
    columns = ("vibration",)

    def decode(self, data: bytes) -> np.ndarray:
        if not data or len(data) % 12:
            raise Rejected("not readings of three axes")
        return np.frombuffer(data, "<f4").reshape(-1, 3)

    def coerce(self, value: Any) -> np.ndarray:
        return self.decode(open(value, "rb").read()) if isinstance(value, str) else np.asarray(value, np.float32)


class Readings:
    def __call__(self, signal: np.ndarray, rng: random.Random | None = None) -> dict[str, Tensor]:
        return {"readings": torch.from_numpy(np.array(signal[:16], np.float32))}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"readings": torch.stack([i["readings"] for i in items])}


def load(place: str) -> Backbone:
    """A tower for it, by the door that out-of-tree families use: MODEL is `tests.modalities.test_fourth_modality:64`."""
    module = nn.Module()
    torch.manual_seed(0)
    module.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.GELU(), nn.Linear(64, int(place)))
    tower = Tower("vibration", int(place), Readings(), lambda x: module.net(x["readings"]), [module.net])
    scales: list[LogitScale] = []
    return Backbone("tests.modalities.test_fourth_modality", module, {"vibration": tower}, scales, {"dim": place.encode()})


def rebuild(directory) -> Backbone:
    return load((directory / "dim").read_text())


@pytest.fixture
def registered():
    modalities.register("vibration", "tests.modalities.test_fourth_modality:Vibration")
    yield
    del modalities.TABLE["vibration"]


def source(out, rows: int, seed: int):
    out.mkdir()
    rng = np.random.default_rng(seed)
    words = ["loose bolt", "bent shaft", "worn gear", "healthy"]
    with open(out / "rows.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["id", "vibration", "text", "group"])
        for i in range(rows):
            kind = i % 4
            readings = rng.normal(0, 0.2, (16, 3)) + np.eye(4, 3)[kind] * 2
            (out / f"{i}.vib").write_bytes(readings.astype("<f4").tobytes())
            table.writerow([f"v{i}", f"{i}.vib", words[kind], words[kind]])
    (out / "broken.vib").write_bytes(b"12345")
    with open(out / "rows.csv", "a", newline="") as f:
        csv.writer(f).writerow(["bad", "broken.vib", "healthy", "healthy"])
    return out / "rows.csv"


def test_a_fourth_modality_goes_through_everything(registered, tmp_path):
    counts = pack(source(tmp_path / "train", 40, 0), tmp_path / "packed", max_rejected=0.1)
    assert counts.packed == 40 and counts.rejected == 1
    assert "not readings of three axes" in (tmp_path / "packed" / "rejected.jsonl").read_text()
    pack(source(tmp_path / "val", 20, 1), tmp_path / "held", max_rejected=0.1)
    data = mmtune.open_data(str(tmp_path / "held"))
    assert data.modalities == ["text", "vibration"]
    out = mmtune.train(
        {
            "model": {"vibration": "tests.modalities.test_fourth_modality:64", "text": "tiny:text"},
            "data": {"train": str(tmp_path / "packed"), "val": str(tmp_path / "held")},
            "train": {"epochs": 10, "batch_size": 10, "lr": 3e-3, "precision": "fp32"},
            "run": {"dir": str(tmp_path / "run")},
        },
        quiet=True,
    )
    result = mmtune.evaluate(out["artifact"], data)
    assert result.metric("map", "text->vibration") > 0.95 and result.metric("hit@1", "vibration->text") > 0.95
    assert "vibration->vibration" in result.directions
    meta = mmtune.embed(out["artifact"], str(tmp_path / "held"), tmp_path / "vectors", quiet=True)
    assert meta.counts["vibration"].rows == 20
    model = mmtune.load(out["artifact"])
    assert model.encode(vibration=str(tmp_path / "val" / "3.vib")).shape == (64,)


def test_it_shows_up_in_the_commands(registered):
    import argparse

    from mmtune.cli import pack_verb

    parser = argparse.ArgumentParser()
    pack_verb.arguments(parser)
    assert "--vibration" in parser.format_help()
