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
# # Your click log as training data
#
# A search that is in use writes a log: what was asked, what was shown at which rank, what was clicked. Clicks are labels that cost nothing, but they are
# biased: the first result is clicked because it stands first. This notebook turns a log into graded training pairs with `mmtune pairs logs`, corrects for the
# rank, tunes a model on the pairs, and compares it with a model tuned on uncorrected counts. It needs no network and no GPU, and takes about two minutes on
# two cores.
#
# `pip install -e ".[cpu,pairs,notebook]"` installs what it needs. The log is simulated, so that the truth is known; with a log of your own start at
# "From the log to pairs".

# %%
import json
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

import mmtune
from mmtune.demo.catalog import write_catalog

warnings.filterwarnings("ignore")
rng = np.random.default_rng(0)
out = Path(tempfile.mkdtemp(prefix="mmtune-"))

# %% [markdown]
# ## A shop with a log
#
# The shop has 80 products, which the demo draws: kinds, colours, details. People ask for a kind in a colour. A photo is relevant (0.9) if both are right, a
# little (0.3) if the kind is, hardly (0.1) if the colour is.

# %%
shop = write_catalog(out / "shop", seed=4, skus=80, train_per_sku=2, val_per_sku=1)
photos = pd.read_csv(shop / "train.csv")[["id", "image", "category", "color"]]
photos.to_csv(shop / "items.csv", index=False)
queries = photos[["color", "category"]].drop_duplicates().reset_index(drop=True)
query_names = (queries.color + " " + queries.category).to_numpy()
same_kind = queries.category.to_numpy()[:, None] == photos.category.to_numpy()
same_color = queries.color.to_numpy()[:, None] == photos.color.to_numpy()
relevance = np.where(same_kind & same_color, 0.9, 0.3 * same_kind + 0.1 * same_color)  # the truth [queries, photos]
print(len(photos), "photos,", len(queries), "queries such as", repr(query_names[0]))

# %% [markdown]
# The search of today agrees with the truth only in part, and its order changes a little from search to search, as in any live system (other stock, other
# prices, an A/B test). A result is clicked if it is looked at and attractive (the position-based click model): rank k is looked at with probability 1/k, and
# attractive are relevant photos, but also 8 of 100 others. One crawler clicks everything.

# %%
SEARCHES, SHOWN = 12_000, 10
examination = 1 / np.arange(1, SHOWN + 1)
today = 0.5 * relevance + rng.normal(0, 0.5, relevance.shape)
for scores, right in zip(today, same_kind & same_color, strict=True):  # a query finds 24 photos, the right ones among them
    scores[rng.permutation(np.flatnonzero(~right))[24 - right.sum() :]] = -np.inf
asked = rng.integers(0, len(queries), SEARCHES)
shown = np.argsort(-(today[asked] + rng.normal(0, 0.4, (SEARCHES, len(photos)))), axis=1)[:, :SHOWN]
attractive = 0.08 + 0.92 * relevance[asked[:, None], shown]
clicked = rng.random(shown.shape) < examination * attractive
user = np.arange(SEARCHES) // 3
user[-60:], clicked[-60:] = user[-1], True
start = pd.Timestamp("2026-05-01") + pd.to_timedelta(np.sort(rng.uniform(0, 30 * 86400, SEARCHES)), unit="s")
log = pd.DataFrame(
    {
        "query": np.repeat(query_names[asked], SHOWN),
        "item": photos.id.to_numpy()[shown].ravel(),
        "rank": np.tile(np.arange(1, SHOWN + 1), SEARCHES),
        "clicked": clicked.ravel().astype(int),
        "time": np.repeat(start.floor("s"), SHOWN),
        "user": np.repeat(user, SHOWN),
    }
)
log.to_csv(out / "log.csv", index=False)
log.head()

# %% [markdown]
# Clicks by rank fall steeply. How much of that is the reader, who looks at the first results, and how much is the ranker, which puts good results first? Counts
# cannot tell.


# %%
def bars(axis, heights, title):
    axis.bar(np.arange(1, SHOWN + 1), heights, color="#2e9454")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("rank", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


figure, axes = plt.subplots(1, 2, figsize=(8, 2.2), dpi=80, layout="constrained")
bars(axes[0], log.groupby("rank").clicked.mean(), "clicks per impression")
bars(axes[1], [relevance[asked, shown[:, k]].mean() for k in range(SHOWN)], "true relevance of what stands there")
plt.show()

# %% [markdown]
# ## From the log to pairs
#
# Pairs that were shown at several ranks tell the two apart: the photo is the same, so a difference between its ranks is the reader. `pairs_from_logs`
# (`mmtune pairs logs`) estimates from them how often each rank is looked at, divides clicks by expected looks, grades the pairs, takes skipped results as
# negatives, and leaves out the crawler. With `position_bias="none"` it counts naively.

# %%
columns = {"query": "query", "item": "item", "position": "rank", "clicked": "clicked", "time": "time", "user": "user"}
made = {}
for name, bias in (("corrected", "estimate"), ("naive", "none")):
    made[name] = mmtune.pairs_from_logs(
        out / "log.csv", out / "pairs" / name, **columns, catalog=shop / "items.csv", catalog_id="id", position_bias=bias
    )
print(str(made["corrected"]).replace(str(out), "."))

# %%
estimate = made["corrected"].measures["position_bias"]
ranks = np.arange(1, SHOWN + 1)
figure, axis = plt.subplots(figsize=(5.5, 2.6), dpi=80)
axis.plot(ranks, examination, color="black", linewidth=1, label="truth (of the simulation)")
axis.plot(ranks, estimate["examination"], "o", color="#2e9454", label="estimated from the log")
counts = log.groupby("rank").clicked.mean()
axis.plot(ranks, counts / counts.iloc[0], "x", color="#b9b6ae", label="clicks per impression, relative")
axis.set_xlabel("rank")
axis.set_ylabel("chance to be looked at")
axis.set_ylim(0, 1.05)
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Are the grades right?
#
# `pairs.parquet` has a grade (1 to 3) and a weight for each pair. Here the weights stand against the truth that the simulation knows: with the correction,
# relevant photos that stood low are found, and others lose what their rank gave them.

# %%
truth = pd.DataFrame(relevance, query_names, photos.id).stack().rename_axis(["query", "item"]).rename("relevance")
pairs = {}
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), dpi=80, sharey=True, layout="constrained")
for axis, (name, result) in zip(axes, made.items(), strict=True):
    table = pd.read_parquet(Path(result.out) / "pairs.parquet").rename(columns={"id": "row"})
    pairs[name] = table.join(truth, on=["query", "item"])
    levels = [pairs[name].weight[pairs[name].relevance.round(1) == r] for r in (0.0, 0.1, 0.3, 0.9)]
    axis.boxplot(levels, tick_labels=["0", "0.1", "0.3", "0.9"])
    rho = pairs[name].weight.corr(pairs[name].relevance, method="spearman")
    axis.set_title(f"{name}: {len(table)} pairs, Spearman's rho {rho:.2f}", fontsize=9)
    axis.set_xlabel("true relevance", fontsize=8)
axes[0].set_ylabel("weight in training")
plt.show()

# %% [markdown]
# ## Train on them
#
# `pack` takes `pairs.parquet` as it is; the skipped results are its explicit negatives. The loss weighs each pair (`weights: weight`). Both models start from the same
# random towers, with the same three seeds; only the pairs differ.
#
# `evaluation.parquet` has each query and each photo of the catalog once. Usually it is scored with `judgments.jsonl`, which comes from later clicks. Here the truth
# is known, so it is used.

# %%
grade = np.select([relevance >= 0.9, relevance >= 0.3, relevance >= 0.1], [3, 2, 1], 0)
lines = [
    json.dumps({"query": query, "item": item, "grade": int(grade[a, b])})
    for a, query in enumerate(query_names)
    for b, item in enumerate(photos.id)
]
(out / "truth.jsonl").write_text("\n".join(lines) + "\n")
test = mmtune.pack(Path(made["corrected"].out) / "evaluation.parquet", out / "data/evaluation").out

rows = []
for name, result in made.items():
    packed = mmtune.pack(Path(result.out) / "pairs.parquet", out / "data" / name).out
    for seed in range(3):
        run = mmtune.train(
            {
                "model": "tiny:clip@1",
                "data": {"train": packed, "negatives_per_query": 1},
                "objective": [{"loss": "info_nce", "weights": "weight"}],
                "train": {"epochs": 8, "batch_size": 32, "lr": 1e-3, "seed": seed, "precision": "fp32"},
                "run": {"dir": str(out / f"runs/{name}-{seed}")},
            },
            quiet=True,
        )
        found = mmtune.evaluate(run.artifact, test, qrels=out / "truth.jsonl", allow_trained=True, quiet=True)
        scores = {m: found.metric(m, "text->image") for m in ("ndcg@10", "map")}
        rows.append({"pairs": name, "seed": seed} | scores)
scores = pd.DataFrame(rows)
display(scores.pivot(index="seed", columns="pairs").round(3))

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), dpi=80)
for shift, (name, colour) in enumerate((("naive", "#b9b6ae"), ("corrected", "#2e9454"))):
    mean = scores[scores.pairs == name][["ndcg@10", "map"]].mean()
    drawn = axis.bar([i + 0.38 * shift for i in range(2)], mean, 0.36, label=name, color=colour)
    axis.bar_label(drawn, fmt="%.3f", fontsize=8)
    for i, metric in enumerate(("ndcg@10", "map")):
        values = scores[scores.pairs == name][metric]
        axis.plot([i + 0.38 * shift] * len(values), values, ".", color="black", markersize=4)
axis.set_xticks([0.19, 1.19], ["nDCG@10", "MAP"])
axis.set_ylim(0.6, 1.08)
axis.set_title("photos that are found for a query, on the truth; dots are seeds", fontsize=9)
axis.legend(frameon=False, loc="upper right", ncols=2, fontsize=8)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The seeds are those of the training; the log is the same for all, so the spread says nothing about other logs. The page *Benchmarks* has three logs.
#
# ## When the correction cannot work
#
# - **Nothing moves.** If every photo always stands at one rank, nothing tells the reader from the ranker. `pairs_from_logs` refuses such a log; `position_bias=1.0` then
#   assumes `1 / rank`.
# - **Other biases.** A click is taken for a look and relevance. Trust in the first result and clickbait titles are not modelled.
# - **Too few clicks.** Pairs with few clicks get a low weight or none (`dropped.json` counts them); lists of a hundred searches are no training set.
#
# ## Next
#
# - The same with a command, also for carts, orders and logs that do not fit into memory: the page *Where pairs come from*.
# - A served index writes such a log itself: `mmtune index judgments`, the page *Shipping*.
