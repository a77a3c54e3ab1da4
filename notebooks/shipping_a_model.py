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
# # Shipping a new model: gate, shadow, cut over, roll back
#
# A search is live. Two new models want to replace its model: one is worse and must be stopped, one is better and must be switched to without a minute
# of wrong results, with a way back. It needs no network and no GPU, and takes about two minutes on two cores.
#
# `pip install -e ".[cpu,notebook]"` installs what it needs. `recipes/new_model.sh` is the same story as a script of commands.

# %%
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import mmtune
from mmtune.demo.catalog import write_catalog

warnings.filterwarnings("ignore", message="IProgress")
out = Path(tempfile.mkdtemp(prefix="mmtune-"))
shop = write_catalog(out / "shop", seed=7, skus=24, train_per_sku=16, val_per_sku=8)
val = pd.read_csv(shop / "val.csv").sample(frac=1, random_state=0)
val[::2].to_csv(shop / "catalog.csv", index=False)  # what is searched
val[1::2].to_csv(shop / "queries.csv", index=False)  # held out, for the gate
data = {name: mmtune.pack(shop / f"{name}.csv", out / "data" / name).out for name in ("base", "train", "catalog", "queries")}


def train(name, model, on, **settings):
    recipe = {
        "model": model,
        "data": {"train": data[on]},
        "train": {"batch_size": 64, "precision": "fp32", "epochs": 4, "lr": 2e-3} | settings,
        "run": {"dir": str(out / "runs" / name)},
    }
    return mmtune.train(recipe, quiet=True).artifact


# %% [markdown]
# ## Three models
#
# The base knows kinds of products. `tuned` was trained on detailed captions. `spoiled` was trained on the same ones with a learning rate that is far too
# large; its loss went down, too, and nobody has looked at it.

# %%
base = train("base", "tiny:clip@1", "base", epochs=5)
tuned = train("tuned", base, "train", epochs=12, lr=1e-3)
spoiled = train("spoiled", base, "train", epochs=1, lr=5e-2)

# %% [markdown]
# ## Version 1 goes live

# %%
shop_index = mmtune.Collection(out / "shop_index", create=True)
built = shop_index.build(base, data["catalog"], quiet=True)
shop_index.promote("v1", why="the first version")
print(f"{built.items} photos, live: {shop_index.live}")

# %%
photo = {r.id: shop / r.image for r in val.itertuples()}
sku = {r.id: r.group for r in val.itertuples()}
queries = [r for r in val[1::2].drop_duplicates("group").itertuples()][:3]


def compare_versions(versions):
    """The five best photos of each version for three queries; a green title: the right product."""
    for query in queries:
        figure, axes = plt.subplots(
            len(versions), 5, figsize=(7, 1.55 * len(versions)), dpi=70, squeeze=False, layout="constrained"
        )
        for line, version in zip(axes, versions, strict=True):
            results = shop_index.search(text=query.text, k=5, version=version).results
            for axis, hit in zip(line, results, strict=False):
                axis.imshow(plt.imread(photo[hit.id]))
                axis.set_title(
                    f"{version}  {hit.score:.2f}", fontsize=7, color="green" if sku[hit.id] == query.group else "#aaa"
                )
                axis.axis("off")
        figure.suptitle(query.text, fontsize=9)
        plt.show()


# %% [markdown]
# ## A model that must not pass
#
# A build embeds all items beside the live version, which goes on answering. `promote` compares both versions on held-out queries and asks the gate.

# %%
shop_index.build(spoiled, quiet=True)
refused = shop_index.promote("v2", queries=data["queries"], why="new model of Monday")
print("promoted:", refused.promoted)
for reason in refused.reasons:
    print("-", reason)
print("live:", shop_index.live)

# %% [markdown]
# A refused promotion changes nothing. `force=True` with a reason could override the gate, and the audit log would keep the reason; a damaged model, or vectors
# of another model, cannot be overridden.

# %%
shop_index.drop("v2", why="worse than v1")
built = shop_index.build(tuned, quiet=True)
print(built.version, "embedded", built.embedded, "contents")

# %% [markdown]
# ## Shadow
#
# A share of the live searches (here all) is repeated on the new version in the background. Users see the live results only. The report says how different
# the results would be, and what a search costs.

# %%
shop_index.shadow(built.version, fraction=1.0)
for row in val[1::2].itertuples():
    shop_index.search(text=row.text, k=10)
for _ in range(100):
    report = shop_index.shadow_report()
    if report.searches >= len(val[1::2]):
        break
    time.sleep(0.1)
print(
    f"{report.searches} searches on both; results in common: {report.overlap:.0%}; the same first result: {report.same_first:.0%}"
)
print("median ms, live and shadow:", round(report.live_ms["p50"], 1), round(report.staged_ms["p50"], 1))

# %% [markdown]
# ## Which one would users click?
#
# Interleaving shows one list that both versions fill in turn; the version whose results are clicked wins. The clicks here are made by a simulated user, who
# clicks what shows the right product, and by mistake one in ten of the others.

# %%
rng = np.random.default_rng(0)
for row in val[1::2].itertuples():
    response = shop_index.interleave(built.version, text=row.text, k=6)
    for hit in response.results:
        if (sku[hit.id] == row.group) or rng.random() < 0.1:
            shop_index.feedback({"query": response.query, "item": hit.id, "kind": "click"})
clicks = shop_index.preference()
low, high = clicks.interval
print(
    f"{clicks.staged} lists were won by {clicks.staged_version}, {clicks.live} by {clicks.live_version}, {clicks.ties} by none"
)
print(f"share of {clicks.staged_version}: {clicks.share:.2f} [{low:.2f}, {high:.2f}], so clicks prefer: {clicks.prefers}")

# %% [markdown]
# ## Cut over

# %%
done = shop_index.promote(built.version, queries=data["queries"], why="tuned on detailed captions")
print("promoted:", done.promoted, "-", done.checks.gate.verdict, "-", done.checks.gate.reason)
print("live:", shop_index.live, "- recall@10 of the index:", dict(done.checks.recall))

# %%
compare_versions(["v1", built.version])

# %% [markdown]
# ## Roll back, and forward again
#
# Something else went wrong on Tuesday. The earlier version was kept up to date, so nothing is embedded.

# %%
begin = time.perf_counter()
shop_index.rollback("support calls; to look into it")
print(f"live: {shop_index.live} after {1000 * (time.perf_counter() - begin):.0f} ms")
shop_index.promote(built.version, queries=data["queries"], why="it was the printer")
print("live:", shop_index.live)

# %% [markdown]
# ## Items change
#
# `upsert` and `delete` change all versions, so a rollback never brings old items back.

# %%
gone = shop_index.search(text=queries[0].text, k=1).ids
shop_index.delete(gone)
print(
    "gone from", {v: gone[0] not in shop_index.search(text=queries[0].text, k=3, version=v).ids for v in ("v1", built.version)}
)

# %% [markdown]
# ## Who did what, and why

# %%
journal = pd.DataFrame(shop_index.journal())
display(journal[[c for c in ("what", "version", "why")]].fillna(""))
shop_index.close()

# %% [markdown]
# ## Next
#
# - The same with commands: the page *Shipping*. Backups, erasing items, several servers: the same page.
# - What users click becomes training data: `mmtune pairs logs`, the page *Where pairs come from*.
