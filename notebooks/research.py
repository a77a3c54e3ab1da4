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
# # Research: a loss, a guard and a miner of your own
#
# A new idea about retrieval is often ten lines of code, and then needs everything around it: data, batches, training, evaluation, and several seeds before anybody
# believes it. Here a loss, a miner of hard negatives and a guard against false negatives are written in about ten lines each, registered from outside the package,
# and compared with the built-in ones over three seeds, with intervals. It needs no network and no GPU, and takes about three minutes on two cores.
#
# `pip install -e ".[cpu,notebook]"` installs what it needs.

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import mmtune
from mmtune.demo.catalog import write_catalog
from mmtune.losses import ContrastiveBlock, contrastive_loss
from mmtune.mining import CandidateBlock, MiningContext

warnings.filterwarnings("ignore")
SEEDS = 3
out = Path(tempfile.mkdtemp(prefix="mmtune-"))

# %% [markdown]
# ## The data
#
# A catalog that the demo draws: 24 products, four of each kind and colour, which differ in one detail. The training rows are packed *without* groups: as with
# most captions of the web, nobody has said which rows show the same thing. So a mined "hard negative" may be another photo of the same
# product, described in other words: a false negative. The test rows have the product as their group, so evaluation knows.

# %%
shop = write_catalog(out / "shop", seed=3, skus=24, train_per_sku=8, val_per_sku=8)
train = pd.read_csv(shop / "train.csv").rename(columns={"group": "sku"})
train[["id", "image", "text", "sku"]].to_csv(shop / "ungrouped.csv", index=False)
held_out = pd.read_csv(shop / "val.csv")
held_out[::2].to_csv(shop / "choose.csv", index=False)  # each run keeps its best epoch on these
held_out[1::2].to_csv(shop / "test.csv", index=False)  # and is compared on these
data = {name: mmtune.pack(shop / f"{name}.csv", out / "data" / name).out for name in ("base", "ungrouped", "choose", "test")}

figure, axes = plt.subplots(1, 6, figsize=(10, 2.1), dpi=80)
one_kind = train[(train.category == train.category[0]) & (train.color == train.color[0])]
for axis, row in zip(axes, one_kind.iloc[[0, 1, 8, 9, 16, 24]].itertuples(), strict=True):
    axis.imshow(plt.imread(shop / row.image))
    axis.set_title(row.text.replace(" with ", "\nwith ").replace(", ", ",\n").replace(" on ", "\non "), fontsize=7)
    axis.axis("off")
plt.show()

# %% [markdown]
# A base model that knows kinds of products, and that all runs start from:

# %%
base = mmtune.train(
    {
        "model": "tiny:clip@1",
        "data": {"train": data["base"]},
        "train": {"epochs": 5, "batch_size": 64, "lr": 2e-3, "precision": "fp32"},
        "run": {"dir": str(out / "runs/base")},
    },
    quiet=True,
).artifact

# %% [markdown]
# ## A loss
#
# A contrastive loss is a function of a block: cosines of queries and candidates [R, C], the masks of positives and negatives, and the learned scale. It returns one
# value a query. Batches, precision, gradient caching and several GPUs are not its business. This one is InfoNCE with an additive margin (CosFace, arXiv 1801.09414,
# on pairs): a positive has to win by `margin`.


# %%
@contrastive_loss
def margin_info_nce(block: ContrastiveBlock, *, margin: float = 0.1) -> torch.Tensor:
    logits = block.scale * (block.similarity - margin * block.positives)
    log_share = logits.masked_fill(~(block.positives | block.negatives), -1e4).log_softmax(1)
    return -(log_share * block.positives).sum(1) / block.positives.sum(1).clamp_min(1)


mmtune.register_loss("margin_info_nce", margin_info_nce)

# %% [markdown]
# ## A miner and a guard
#
# Both are made from the context of one direction, here of photos that search captions. The miner proposes, for each photo, the captions that have most words in
# common with its own, but not all: the products that differ in one detail. The guard drops a caption with the same words in another order: the same
# product, whoever proposed it.


# %%
def word_table(context: MiningContext) -> tuple[np.ndarray, np.ndarray]:
    """Which words each query's and each candidate's caption has, float32 [Q, V] and [C, V]."""
    text = {i: context.data.read(row, "text").decode() for row, i in enumerate(context.data.ids)}
    words = [set(text[i].replace(",", "").split()) - {"a", "in", "on", "with"} for i in text]
    column = {w: n for n, w in enumerate(sorted(set().union(*words)))}
    table = {i: [w in of for w in column] for i, of in zip(text, words, strict=True)}
    return tuple(np.array([table[i] for i in items.ids], np.float32) for items in (context.queries, context.candidates))


class AlmostSameWords:
    """A miner: captions with most words in common, but not all."""

    def __init__(self, context: MiningContext) -> None:
        self.query, self.candidate = word_table(context)

    def propose(self, queries: np.ndarray) -> np.ndarray:
        common = self.query[queries] @ self.candidate.T
        common[common == self.candidate.sum(1)] = -1
        return np.argsort(-common, axis=1, kind="stable")[:, :30]


class SameWords:
    """A guard: captions with the same words."""

    name = "same_words"

    def __init__(self, context: MiningContext) -> None:
        self.query, self.candidate = word_table(context)

    def drops(self, block: CandidateBlock) -> np.ndarray:
        return (self.query[block.queries][:, None] == self.candidate[block.candidates]).all(2)


mmtune.register_miner_source("almost_same_words", AlmostSameWords)
mmtune.register_guard("same_words", SameWords)

# %% [markdown]
# ## What is mined
#
# The table of mined negatives says for each candidate whether it was taken, and else why not. The column `sku`, which training does not use, tells how many of
# those that were taken are false.

# %%
OFF = {
    "groups": False,
    "trust_groups": False,
    "relative_margin": None,
    "near_duplicates": False,
    "hub_cap": None,
}  # every guard
MINING = {
    "nearest, no guard": {"sources": ["nearest"], "guards": OFF},
    "nearest, margin guard": {"sources": ["nearest"], "guards": OFF | {"relative_margin": 0.05}},
    "nearest, own guard": {"sources": ["nearest"], "guards": OFF | {"extra": ["same_words"]}},
    "own miner": {"sources": ["almost_same_words"], "guards": OFF},
}
sku, rows = dict(zip(train.id, train.sku, strict=True)), []
for name, options in MINING.items():
    file = out / f"mined/{name}.parquet"
    mmtune.mine(base, data["ungrouped"], file, options | {"directions": ["image->text"]}, quiet=True)
    table = pd.read_parquet(file).query("verdict == 'mined'")
    false = np.mean([sku[q] == sku[n] for q, n in zip(table.query_id, table.negative_id, strict=True)])
    rows.append({"": name, "mined": len(table), "false negatives": f"{false:.0%}"})
display(pd.DataFrame(rows).set_index(""))

# %% [markdown]
# ## Compared over seeds
#
# A recipe is data, so an experiment is a table of recipes. `mmtune.train(..., seeds=3)` trains each with three seeds, and `mmtune.evaluate` of such a directory gives
# the mean, the standard deviation and a 95% t-interval of the mean over the seeds.

# %%
RECIPES = {
    "InfoNCE": {"objective": [{"loss": "info_nce"}]},
    "sigmoid (SigLIP)": {"objective": [{"loss": "sigmoid"}]},
    "own loss": {"objective": [{"loss": "margin_info_nce", "margin": 0.1}]},
}
for name, options in MINING.items():
    RECIPES[f"InfoNCE + {name}"] = {
        "objective": [{"loss": "info_nce"}],
        "mining": {"rounds": 2, "directions": ["image->text"]} | options,
    }
runs = {}
for number, (name, recipe) in enumerate(RECIPES.items()):
    common = {
        "model": base,
        "data": {"train": data["ungrouped"], "val": data["choose"]},
        "train": {"epochs": 4, "batch_size": 32, "lr": 1e-3, "metric": "map", "precision": "fp32"},
        "run": {"dir": str(out / f"runs/{number}")},
    }
    mmtune.train(common | recipe, quiet=True, seeds=SEEDS)
    runs[name] = out / f"runs/{number}"

# %%
table = []
for name, directory in runs.items():
    evaluated = mmtune.evaluate(directory, data["test"], quiet=True)
    for where in ("image->text", "text->image"):
        s = evaluated.metric("map", where)
        table.append({"recipe": name, "direction": where} | {k: s[k] for k in ("mean", "sd", "low", "high")})
table = pd.DataFrame(table)
display(table.set_index(["direction", "recipe"]).sort_index(level=0, sort_remaining=False).round(3))

# %% [markdown]
# ## Differences, with intervals
#
# Two means with intervals that overlap say little: the queries are the same, so the differences per query are sharper. `mmtune.compare` takes two directories of
# seeds, pairs the first seed with the first, and gives the mean difference with an interval that covers both the choice of queries and that of
# seeds. Only an interval that does not contain 0 is a result.

# %%
differences = {}
for name in list(runs)[1:]:
    compared = mmtune.compare(runs["InfoNCE"], runs[name], data["test"], quiet=True)
    differences[name] = {d: compared.metrics[d]["map"] for d in ("image->text", "text->image")}
figure, axis = plt.subplots(figsize=(7, 3), dpi=80)
for place, name in enumerate(reversed(differences)):
    for shift, (direction, colour) in enumerate((("image->text", "#2e9454"), ("text->image", "#4a6fb5"))):
        d = differences[name][direction]
        y = place - 0.12 + 0.24 * shift
        axis.plot(d.interval, [y, y], color=colour, linewidth=2, label=direction if place == 0 else None)
        axis.plot([d.difference], [y], "o", color=colour)
axis.axvline(0, color="black", linewidth=0.8)
axis.set_yticks(range(len(differences)), reversed(differences))
axis.set_xlabel("difference of MAP to plain InfoNCE; 95% interval over queries and seeds")
axis.legend(frameon=False, fontsize=8)
axis.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
plt.show()


# %%
def verdict(difference):
    low, high = difference.interval
    return "better" if low > 0 else "worse" if high < 0 else "not decided"


display(pd.DataFrame({n: {d: verdict(x) for d, x in of.items()} for n, of in differences.items()}).T)

# %% [markdown]
# ## What to take from it
#
# - Losses, miners and guards are plain functions and classes. The recipe names them, so every run directory says which ones it used.
# - A guard is cheap to check before any training: the table above counts false negatives.
# - Small corpora decide little. Where the table says "not decided", more queries and more seeds are needed, not another reading of the means.
#
# ## Next
#
# - In a file of your own a part needs no registration: a recipe names it as `package.module:Name`. The page *Extending* has all other parts (batch plans, metrics,
#   tasks, towers, modalities, stores).
# - Whether mining helps on your data, with no code: `recipes/does_mining_help.py`, the page *Hard negatives*.
