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
# # Catalog search: from a CSV to a live page
#
# A shop has a CSV: a photo, a description, a SKU and a category a row. At the end of this notebook a search page answers over that
# catalog, with a model that was tuned on it and had to pass a gate first. It needs no network and no GPU, and takes about two minutes on two cores.
#
# `pip install -e ".[cpu,serve,notebook]"` installs what it needs. The data are drawn here; with a CSV of your own start at "Pack".

# %%
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display

import mmtune
from mmtune.demo.catalog import write_catalog

warnings.filterwarnings("ignore", message="IProgress")
out = Path(tempfile.mkdtemp(prefix="mmtune-"))
shop = write_catalog(out / "shop", seed=5, skus=24, train_per_sku=20, val_per_sku=6)

# %% [markdown]
# ## The CSV

# %%
tables = {name: pd.read_csv(shop / f"{name}.csv").rename(columns={"group": "sku"}) for name in ("train", "val")}
columns = ["id", "image", "text", "sku", "category", "color"]
tables["train"][columns].to_csv(shop / "products.csv", index=False)
held = tables["val"][columns].sample(frac=1, random_state=0)
held[::2].to_csv(shop / "choose.csv", index=False)  # the best epoch is chosen on these photos
held[1::2].to_csv(shop / "test.csv", index=False)  # and these decide at the end
tables["train"][columns].head()


# %%
def show_photos(rows, title=None, width=6):
    """Photos with a caption below each."""
    figure, axes = plt.subplots(1, width, figsize=(1.6 * width, 2.1), dpi=80)
    for axis, (path, label, colour) in zip(axes, rows, strict=False):
        axis.imshow(plt.imread(path))
        axis.set_title(label, fontsize=7, color=colour)
    for axis in axes:
        axis.axis("off")
    figure.suptitle(title, fontsize=9, x=0.02, ha="left")
    plt.show()


sample = tables["train"].drop_duplicates("sku").head(6)
show_photos([(shop / r.image, r.text.replace(" with ", "\nwith ").replace(", ", ",\n"), "black") for r in sample.itertuples()])

# %% [markdown]
# Products of one kind and colour differ in one detail. That is what a general model overlooks.
#
# ## Pack
#
# `pack` checks every file. Rows of one SKU match each other (`group="sku"`); all other columns travel along.

# %%
data = {
    name: mmtune.pack(shop / f"{name}.csv", out / "data" / name, group="sku").out for name in ("products", "choose", "test")
}
found = mmtune.doctor(data["products"], against=[data["choose"], data["test"]])
print("findings:", [f.message for f in found.findings] or "none")

# %% [markdown]
# ## A base model
#
# You would begin with a checkpoint that knows a lot, such as `hf:openai/clip-vit-base-patch32`. Nothing is downloaded here, so three small random
# towers are trained for some seconds on a generic corpus of products, whose captions name the kind and get details wrong.

# %%
generic = mmtune.pack(shop / "base.csv", out / "data/generic").out
base = mmtune.train(
    {
        "model": "tiny:clip@1",
        "data": {"train": generic},
        "train": {"epochs": 6, "batch_size": 64, "lr": 2e-3, "precision": "fp32"},
        "run": {"dir": str(out / "runs/base")},
    },
    quiet=True,
).artifact

# %% [markdown]
# ## Tune it
#
# A recipe is data. `positives: mask` says that photos of one SKU are never each other's negatives.

# %%
recipe = {
    "model": base,
    "data": {"train": data["products"], "val": data["choose"], "batches": "spread"},
    "objective": [{"loss": "info_nce", "positives": "mask", "smoothing": 0.1}],
    "train": {"epochs": 14, "batch_size": 64, "lr": 1e-3, "metric": "map", "precision": "fp32"},
    "run": {"dir": str(out / "runs/tuned")},
}
run = mmtune.train(recipe, quiet=True)
log = pd.read_json(out / "runs/tuned/metrics.jsonl", lines=True)
print(f"{run.pairs_per_second:.0f} pairs/s; columns of metrics.jsonl: {', '.join(map(str, log.columns[:6]))}, ...")

# %% [markdown]
# ## Is it better?
#
# Decided on photos that neither model was trained or chosen on, per query, with intervals. The gate asks for a gain of at least 0.05 in MAP.

# %%
comparison = mmtune.compare(
    base, run.artifact, data["test"], gate={"metric": "map", "direction": "text->image", "min_gain": 0.05}
)
print(comparison.verdict, "-", comparison.reason)

# %%
before, after = mmtune.evaluate(base, data["test"]), mmtune.evaluate(run.artifact, data["test"])
names = ["text->image", "image->text", "image->image"]
figure, axis = plt.subplots(figsize=(6, 2.4), dpi=80)
for shift, (label, result, colour) in enumerate((("base", before, "#b9b6ae"), ("tuned", after, "#2e9454"))):
    bars = axis.bar(
        [i + 0.38 * shift for i in range(3)], [result.metric("map", d) for d in names], 0.36, label=label, color=colour
    )
    axis.bar_label(bars, fmt="%.2f", fontsize=8)
axis.set_xticks([i + 0.19 for i in range(3)], names)
axis.set_ylabel("MAP")
axis.set_ylim(0, 1.15)
axis.legend(frameon=False, loc="upper left")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## An index of the catalog
#
# A collection pins the model to its vectors: a query is always encoded by the model of the version that answers it.

# %%
collection = out / "collection"
with mmtune.Collection(collection, create=True) as c:
    built = c.build(run.artifact, data["products"], quiet=True)
    promoted = c.promote(built.version, why="the first version")
print(built.items, "photos;", promoted.version, "is live")

# %%
photo = {r.id: shop / r.image for r in tables["train"].itertuples()}
sku = {r.id: r.sku for r in tables["train"].itertuples()}


def search_sheet(query, wanted, **options):
    with mmtune.Collection(collection) as c:
        hits = c.search(text=query, k=6, **options).results
    show_photos([(photo[h.id], f"{h.score:.2f}\n{sku[h.id]}", "green" if sku[h.id] == wanted else "#999") for h in hits], query)


for row in tables["val"].drop_duplicates("sku").iloc[[1, 8, 15]].itertuples():
    search_sheet(row.text, row.sku)

# %% [markdown]
# The best photo of each product instead of all photos of the best product, and only the bags:

# %%
bag = tables["val"][tables["val"].category == "bag"].iloc[0]
search_sheet(bag.text, bag.sku, group_by="group", where="category = 'bag'")

# %% [markdown]
# ## The live page
#
# `mmtune serve COLLECTION` is a REST server and a search page in one process.

# %%
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = subprocess.Popen(
    [sys.executable, "-m", "mmtune", "serve", str(collection), "--port", str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
url = f"http://127.0.0.1:{port}"
for _ in range(240):
    try:
        urllib.request.urlopen(url + "/ready")
        break
    except OSError:
        time.sleep(0.5)
query = json.dumps({"text": bag.text, "k": 3, "group_by": "group"}).encode()
request = urllib.request.Request(url + "/search", query, {"Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(request))
answer["results"] = [{"id": r["id"], "score": round(r["score"], 3)} for r in answer["results"]]
{k: answer[k] for k in ("version", "results")}

# %% [markdown]
# The page as a browser shows it (if one is installed here):

# %%
browser = shutil.which("chromium") or shutil.which("google-chrome")
if browser:
    shot = out / "page.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1100,760",
        "--virtual-time-budget=8000",
    ]
    subprocess.run([browser, *flags, f"--screenshot={shot}", url + "/page/"], capture_output=True, timeout=120)
    if shot.exists():
        display(Image(shot.read_bytes(), width=720))
server.terminate()
server.wait()

# %% [markdown]
# ## Next
#
# - The same with commands: `mmtune pack`, `doctor`, `train recipes/catalog_images.yaml`, `compare`, `index build`, `index promote`, `serve`.
# - The next model: the notebook *Shipping a new model*. What customers click: `mmtune pairs logs`.
