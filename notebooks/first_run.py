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
# # A first run: from files to a better search
#
# A shop sells jackets that differ in a stitch. A plant listens to machines whose faults differ in a click. A general model
# knows "a jacket" and "a gearbox"; it does not know *which*. This notebook makes such data, packs them, trains a general
# base model, tunes it on fine captions, and shows searches before and after. It needs no network and no GPU, and takes
# about two minutes.
#
# `pip install -e ".[cpu,notebook]"` installs what it needs. `mmtune demo` is the same as one command.

# %%
import csv
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import soundfile
from IPython.display import Audio, display
from PIL import Image

import mmtune
from mmtune.demo.catalog import write_catalog
from mmtune.demo.demo_page import sheet
from mmtune.demo.example_searches import example_searches
from mmtune.demo.machines import write_machines
from mmtune.modalities.spectrogram import spectrogram_picture

warnings.filterwarnings("ignore", message="IProgress")  # a progress bar of another library that wants widgets
out = Path(tempfile.mkdtemp(prefix="mmtune-"))

# %% [markdown]
# ## Your files
#
# A source is a table and the files that it names. Here both are made for you: photos of products, and recordings of machines.
# With your own data you would start here, with a CSV of your own.

# %%
catalog = write_catalog(out / "source/catalog", seed=1, skus=24, train_per_sku=20, val_per_sku=5)
machines = write_machines(out / "source/machines", seed=1, machines=2, train_recordings=4)
photos = {split: list(csv.DictReader((catalog / f"{split}.csv").open())) for split in ("base", "train", "val")}
clips = {split: list(csv.DictReader((machines / f"{split}.csv").open())) for split in ("base", "train", "val")}
photos["train"][0]

# %% [markdown]
# One family: the same jacket with different stitching. `group` says which photos show the same product; the trainer never uses
# two of them as each other's negatives, and evaluation counts them as relevant for each other.

# %%
jackets = {(r["pose"], r["group"]): r for r in photos["train"] if r["category"] == "jacket"}
family = [jackets[key] for key in sorted(jackets)[:8]]
figure, axes = plt.subplots(2, 4, figsize=(7, 4), dpi=80)
for ax, row in zip(axes.flat, family, strict=True):
    ax.imshow(Image.open(catalog / row["image"]))
    ax.set_title(row["detail"], fontsize=9)
    ax.axis("off")

# %% [markdown]
# Machines: a hairline crack clicks once a turn, a scratch grinds for a third of it, a fault of the inner race swells and fades.

# %%
for group in ("gearbox-healthy", "gearbox-crack-severe", "gearbox-scratch-severe", "gearbox-inner-severe"):
    row = next(r for r in clips["train"] if r["group"] == group)
    samples, rate = soundfile.read(machines / row["audio"])
    print(row["text"])
    display(spectrogram_picture(samples, rate, 420, 110), Audio(samples, rate=rate))

# %% [markdown]
# ## Pack
#
# `pack` checks every file once and writes shards. Rows that cannot be used are listed with the reason, never silently lost.

# %%
data = {
    (name, split): mmtune.pack(source / f"{split}.csv", out / "data" / name / split).out
    for name, source in (("catalog", catalog), ("machines", machines))
    for split in ("base", "train", "val")
}
{f"{name}, {split}": len(mmtune.open_data(place)) for (name, split), place in data.items()}

# %% [markdown]
# ## A base model trained on coarse captions
#
# Normally you would begin with a checkpoint, such as `open_clip:ViT-B-32/laion2b_s34b_b79k` or `hf:laion/clap-htsat-unfused`.
# Here the base is trained from random weights in a few seconds, on captions whose kind is right and whose details are random.


# %%
def recipe(model, split, epochs, lr):
    return {
        "model": str(model),
        "data": {"train": [str(data["catalog", split]), str(data["machines", split])], "workers": 1},
        "pairs": [["text", "image"], ["text", "audio"]],
        "train": {"epochs": epochs, "batch_size": 64, "lr": lr, "precision": "fp32"},
        "run": {"dir": str(out / "runs" / split)},
    }


base = mmtune.train(recipe("tiny:all@1", "base", epochs=6, lr=2e-3), quiet=True).artifact

# %% [markdown]
# ## Tune it on fine captions
#
# The same trainer and the same recipe, with another initial model and other data.

# %%
tuned = mmtune.train(recipe(base, "train", epochs=12, lr=1e-3), quiet=True).artifact

# %% [markdown]
# ## Did retrieval get better?
#
# Evaluated on photos and recordings that neither model was trained on. `hit@1`: how often the first result is relevant.

# %%
val = mmtune.open_data([str(data["catalog", "val"]), str(data["machines", "val"])])
before, after = mmtune.evaluate(base, val), mmtune.evaluate(tuned, val)
display(before, after)

# %%
names = [d for d in after.directions if len(set(d.split("->"))) == 2]
figure, ax = plt.subplots(figsize=(8, 3))
for shift, (label, result, color) in enumerate((("before", before, "#b9b6ae"), ("after", after, "#2e9454"))):
    heights = [result.metric("hit@1", d) for d in names]
    bars = ax.bar([i + 0.38 * shift for i in range(len(names))], heights, 0.36, label=label, color=color)
    ax.bar_label(bars, fmt="%.2f", fontsize=8)
ax.set_xticks([i + 0.19 for i in range(len(names))], names)
ax.set_ylabel("hit@1")
ax.set_ylim(0, 1.12)
ax.legend(loc="upper left", frameon=False)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Look and listen
#
# Green is relevant. The base retrieves the right *kind*; the tuned model the right *product* and the right fault.

# %%
found = example_searches({name: str(data[name, "val"]) for name in ("catalog", "machines")}, base, tuned, count=2)
for heading in ("Photos for a description", "Sounds for a description"):
    print(heading)
    for search in found[heading]:
        display(sheet(search).quantize(128))  # fewer colours: a smaller notebook

# %%
search = found["Sounds for a description"][0]
print("query:", search.query.data.decode())
for when, hits in (("before", search.before), ("after", search.after)):
    print(f"{when}: {hits[0].label}")
    display(Audio(hits[0].data))

# %% [markdown]
# ## Use it
#
# An artifact is a folder: weights, preprocessing, tokenizer, and a fingerprint that names its vector space. Vectors have
# length 1, so their dot product is the cosine similarity.

# %%
model = mmtune.load(tuned)
row = next(r for r in photos["val"] if r["category"] == "bag")
photo = model.encode(image=catalog / row["image"])
texts = [row["text"], "green bag with a wide pocket", "navy jacket with zigzag stitching"]
for text, cosine in zip(texts, model.encode(text=texts) @ photo, strict=True):
    print(f"{cosine:.2f}  {text}")
print("space:", model.fingerprint[:16])

# %% [markdown]
# ## Next
#
# - Your own data: `mmtune pack products.csv --out data/train`, then
#   `mmtune train recipes/catalog_images.yaml model=open_clip:ViT-B-32/laion2b_s34b_b79k data.train=data/train`.
# - Is the gain real? `mmtune compare BASE CANDIDATE DATA` answers per query, with intervals.
# - `mmtune --help` lists the verbs.
