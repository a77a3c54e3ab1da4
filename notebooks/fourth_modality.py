# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A fourth modality in one file
#
# Images, sounds and texts are built in. Here accelerometer readings of machines become a fourth modality, in one file of about 60 lines; then they are packed,
# searched by words, and found by each other like everything else. It needs no network and no GPU, and takes about a minute on two cores.
#
# `pip install -e ".[cpu,notebook]"` installs what it needs.

# %%
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Audio, Code, display

import mmtune

warnings.filterwarnings("ignore", message="IProgress")
out = Path(tempfile.mkdtemp(prefix="mmtune-"))

# %% [markdown]
# ## The data
#
# Readings of three axes, 256 ms at 2 kHz, as raw float32 in a `.vib` file each; a caption and a group a row. Speed, phase, loudness and noise vary.

# %%
RATE, LENGTH = 2000, 512
FAULTS = {
    "balanced": lambda t, f: 0 * t,
    "unbalanced": lambda t, f: 2.0 * np.sin(2 * np.pi * f * t),
    "misaligned": lambda t, f: 1.6 * np.sin(4 * np.pi * f * t),
    "loose": lambda t, f: np.sign(np.sin(2 * np.pi * f * t)) * 0.9 + 0.8 * np.abs(np.sin(3 * np.pi * f * t)),
    "cracked": lambda t, f: 5.0 * ((t * f) % 1 < 0.04),
}
WORDS = {
    "balanced": "balanced shaft",
    "unbalanced": "unbalanced rotor",
    "misaligned": "misaligned coupling",
    "loose": "loose foot",
    "cracked": "cracked tooth",
}
AXES = {"x": (1.0, 0.3, 0.1), "z": (0.1, 0.3, 1.0)}


def readings(fault, axis, rng):
    """float32 [LENGTH, 3]."""
    t = np.arange(LENGTH) / RATE + rng.uniform(0, 1)
    signal = FAULTS[fault](t, rng.uniform(22, 28)) * rng.uniform(0.6, 1.4)
    return (signal[:, None] * np.array(AXES[axis]) + rng.normal(0, 0.25, (LENGTH, 3))).astype("<f4")


def write(name, count, seed):
    rng, rows = np.random.default_rng(seed), []
    (out / name).mkdir()
    for i in range(count):
        fault, axis = list(FAULTS)[i % 5], "xz"[i // 5 % 2]
        (out / name / f"{i}.vib").write_bytes(readings(fault, axis, rng).tobytes())
        text = (f"{WORDS[fault]}, along {axis}", f"along {axis}: {WORDS[fault]}")[i // 10 % 2]
        rows.append({"id": f"{name}-{i}", "vibration": f"{i}.vib", "text": text, "group": f"{fault}-{axis}", "fault": fault})
    (out / name / "broken.vib").write_bytes(b"12345")
    rows.append({"id": f"{name}-broken", "vibration": "broken.vib", "text": "loose foot", "group": "loose-x", "fault": "loose"})
    pd.DataFrame(rows).to_csv(out / name / "rows.csv", index=False)
    return out / name / "rows.csv"


tables = {"train": write("train", 400, 0), "val": write("val", 100, 1)}
pd.read_csv(tables["train"]).head(3)

# %%
figure, axes = plt.subplots(1, 5, figsize=(11, 1.8), dpi=80, sharey=True, layout="constrained")
rng = np.random.default_rng(2)
for axis, fault in zip(axes, FAULTS, strict=True):
    axis.plot(np.arange(LENGTH) / RATE * 1000, readings(fault, "x", rng), linewidth=0.7)
    axis.set_title(WORDS[fault], fontsize=8)
    axis.set_xlabel("ms", fontsize=7)
    axis.tick_params(labelsize=7)
plt.show()
for fault in ("balanced", "cracked"):
    print(WORDS[fault], "as a sound, four times in a row")
    display(Audio(np.tile(readings(fault, "x", rng)[:, 0], 4), rate=RATE))

# %% [markdown]
# ## The file
#
# A modality says how bytes become a signal, and how they are checked. A family of towers says how a signal becomes a vector: `load` makes it, and `rebuild` makes
# it again from the files that the artifact keeps. That is all.

# %%
CODE = '''"""Vibration: readings of three axes."""
import io

import numpy as np
import torch
from torch import nn

from mmtune.backbones import Backbone, Tower
from mmtune.modalities import Modality, Rejected

LENGTH = 512


class Vibration(Modality):
    name = "vibration"
    extensions = ("vib",)
    columns = ("vibration",)

    def decode(self, data: bytes) -> np.ndarray:
        if not data or len(data) % 12:
            raise Rejected("not readings of three axes")
        return np.frombuffer(data, "<f4").reshape(-1, 3)

    def coerce(self, value) -> np.ndarray:
        """What users hand to model.encode(vibration=...): a path or an array."""
        return self.decode(open(value, "rb").read()) if isinstance(value, str) else np.asarray(value, np.float32)


class Spectrum:
    """Preprocessing: the spectrum of each axis. With a random generator (training) loudness varies."""

    def __call__(self, signal, rng=None):
        signal = np.resize(signal, (LENGTH, 3)) * (rng.uniform(0.8, 1.2) if rng else 1.0)
        spectrum = np.abs(np.fft.rfft(signal * np.hanning(LENGTH)[:, None], axis=0))[1:129]
        return {"spectrum": torch.from_numpy(np.log1p(spectrum).astype(np.float32).T)}

    def collate(self, items):
        return {"spectrum": torch.stack([i["spectrum"] for i in items])}


def load(place: str) -> Backbone:
    """MODEL is vibration:DIM."""
    torch.manual_seed(0)
    module = nn.Module()
    module.net = nn.Sequential(
        nn.Conv1d(3, 32, 7, 2, 3), nn.GELU(), nn.Conv1d(32, 64, 5, 2, 2), nn.GELU(),
        nn.AdaptiveAvgPool1d(8), nn.Flatten(), nn.Linear(512, int(place)),
    )
    tower = Tower("vibration", int(place), Spectrum(), lambda x: module.net(x["spectrum"]), [module.net])
    return Backbone("vibration", module, {"vibration": tower}, [], {"dim": place.encode()})


def rebuild(directory) -> Backbone:
    return load((directory / "dim").read_text())
'''
(out / "vibration.py").write_text(CODE)
sys.path.insert(0, str(out))
mmtune.register_modality("vibration", "vibration:Vibration")
display(Code(CODE, language="python"))

# %% [markdown]
# ## Pack, train, evaluate
#
# The broken file is rejected with the reason that the class gives. The model is a composition: the new tower, and a text tower.

# %%
packed = {}
for split, table in tables.items():
    result = mmtune.pack(table, out / "data" / split)
    packed[split] = result.out
    print(split, result.packed, "packed,", result.rejected, "rejected")
pd.read_json(out / "data/train/rejected.jsonl", lines=True)

# %%
run = mmtune.train(
    {
        "model": {"vibration": "vibration:64", "text": "tiny:text"},
        "data": {"train": packed["train"]},
        "objective": [{"loss": "info_nce", "positives": "mean"}],
        "train": {"epochs": 12, "batch_size": 50, "lr": 3e-3, "precision": "fp32"},
        "run": {"dir": str(out / "run")},
    },
    quiet=True,
)
display(mmtune.evaluate(run.artifact, packed["val"]))

# %% [markdown]
# ## A map of the space
#
# The two main directions of the validation vectors: readings are dots, captions are crosses.

# %%
model = mmtune.load(run.artifact)
data = mmtune.open_data(packed["val"])
fault = np.array(data.column("fault"))
signals = [str(out / "val" / f"{id.split('-')[1]}.vib") for id in data.ids]
vectors = model.encode(vibration=signals)
texts = model.encode(text=[f"{WORDS[f]}, along x" for f in FAULTS])
axes2 = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][:2].T
figure, axis = plt.subplots(figsize=(5, 3.6), dpi=80)
for colour, f in enumerate(FAULTS):
    dots = (vectors[fault == f] - vectors.mean(0)) @ axes2
    axis.scatter(*dots.T, s=12, color=f"C{colour}", label=WORDS[f])
    axis.scatter(*((texts[colour] - vectors.mean(0)) @ axes2), marker="x", s=70, color=f"C{colour}")
axis.legend(fontsize=7, frameon=False)
axis.set_xticks([])
axis.set_yticks([])
plt.show()

# %% [markdown]
# ## Search, and find an anomaly

# %%
with mmtune.Collection(out / "collection", create=True) as c:
    c.promote(c.build(run.artifact, packed["val"], quiet=True).version, why="the first version")
    hits = c.search(text="cracked tooth, along z", k=5).results
    alike = c.search(vibration=signals[0], k=3).results
print("cracked tooth, along z:", [(h.group, round(h.score, 2)) for h in hits])
print("like a reading of", data.groups[0], ":", [h.group for h in alike])

# %%
area = mmtune.evaluate(run.artifact, packed["val"], task="anomaly", reference=packed["train"], normal="fault=balanced")
display(area.to_pandas())

# %% [markdown]
# ## Next
#
# - Augmentation options of a modality, perceptual hashes for near duplicates, windows of long signals: the page *Extending*.
