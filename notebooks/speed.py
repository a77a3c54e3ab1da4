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
# # How fast, and against whom
#
# The same random towers, the same JPEG and FLAC files, the same batches, AdamW and symmetric InfoNCE, one after the other on
# this machine: mmtune from its shards, sentence-transformers from files, open_clip's own trainer from the same shards, and a
# bare PyTorch loop whose inputs lie in memory as tensors before its clock starts, so it reads and decodes nothing. Each is a
# process of its own; steps 5 to 20 of a first epoch are timed; a figure is the median over the rounds.
#
# It runs from a clone with `pip install -e ".[cpu,test,bench,notebook]"` and nothing else busy. One round takes about eight
# minutes on two cores. `pytest -m bench -s tests/benchmarks/test_bench_training.py` prints the same figures.

# %%
import os
import platform
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch
from IPython.display import Audio, display

import mmtune

sys.path.insert(0, str(Path(mmtune.__file__).parents[1] / "tests" / "benchmarks"))
from speed_corpus import draw_clip, draw_photo, words  # noqa: E402
from speed_rounds import BATCH, compare, precision  # noqa: E402
from test_bench_growth import draw, grow  # noqa: E402

ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
home = Path(tempfile.mkdtemp())
print(f"{platform.machine()}, {os.cpu_count()} cores, {precision()}, torch {torch.__version__}, {ROUNDS} rounds")

# %% [markdown]
# ## What is trained on
#
# Photos and sounds generated from a seed, as large as a shop's photos and as long as a plant's clips. Each has a caption of its
# own, or (as in a catalog, where a product has many photos) 16 or 32 share one.

# %%
rng = np.random.default_rng(0)
for i in range(4):
    print(words("image", i, rng))
    display(draw_photo(rng).convert("RGB"))

# %%
for i in range(4):
    print(words("audio", i, rng))
    display(Audio(draw_clip(rng), rate=12_000))

# %% [markdown]
# ## Training

# %%
SETTINGS = {
    "CLIP, every photo its own words": ("image", 1),
    "CLIP, 32 photos a text": ("image", 32),
    "CLAP, every sound its own words": ("audio", 1),
    "CLAP, 16 sounds a text": ("audio", 16),
}
found = {name: compare(kind, share, home, ROUNDS) for name, (kind, share) in SETTINGS.items()}

# %%
table = {}
for name, contenders in found.items():
    speed = {c: m["pairs_per_s"] for c, m in contenders.items()}
    best = max((v for c, v in speed.items() if c not in ("mmtune", "bare")), default=float("nan"))
    ratios = {"over the best peer": round(speed["mmtune"] / best, 2), "over bare": round(speed["mmtune"] / speed["bare"], 2)}
    table[f"{name}, batch {BATCH[SETTINGS[name][0]]}"] = {c: round(v, 1) for c, v in speed.items()} | ratios
display(pandas.DataFrame(table))

# %%
colours = {"mmtune": "#0b6e4f", "bare": "#999999"}


def bars(key, title):
    figure, axes = plt.subplots(1, len(found), figsize=(14, 3.2), layout="constrained")
    for axis, (name, contenders) in zip(axes, found.items(), strict=True):
        values = {c: m[key] for c, m in contenders.items()}
        axis.barh(list(values), list(values.values()), color=[colours.get(c, "#c8963e") for c in values])
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
    figure.suptitle(title)
    plt.show()


bars("pairs_per_s", "pairs per second (longer is better)")
bars("memory_mb", "memory of all its processes, MB (shorter is better)")

# %% [markdown]
# ## How time grows
#
# Processor time of one thread over the size of a batch or of a corpus, both axes logarithmic: a line's slope is the exponent.
# A step and embedding grow in proportion, a loss over all pairs of a batch with the square.

# %%
curves = grow(home, 1)
figure = draw(curves)
plt.show()
display(pandas.DataFrame({n: {"exponent": c["exponent"], "MB at the largest": c["memory_mb"][-1]} for n, c in curves.items()}))

# %% [markdown]
# ## What to take from it
#
# - On a CPU most of everybody's time goes into the towers' matrix products. What is left to win is around them: files decoded
#   in threads beside the step, equal captions encoded once, fewer passes over memory (see `mmtune/backbones/cpu_fast`).
# - Machines differ, neighbours disturb: compare within one run, never figures of two.
# - On your own rows, `mmtune train` prints pairs/s and the share of time that it waited for data.
