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
# # Machine sounds: from a folder of recordings to a defect finder
#
# A plant has a folder of recordings, a subfolder for each condition of each machine. At the end of this notebook a model names the fault of a
# new recording, raises an alarm for sounds that are unlike all normal ones, and finds recordings for "a hairline crack". It needs no network
# and no GPU, and takes about two minutes on two cores.
#
# `pip install -e ".[cpu,notebook]"` installs what it needs.

# %%
import csv
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from IPython.display import Audio, display
from sklearn.metrics import roc_curve

import mmtune
from mmtune.comparison.compare_tasks import interval_lines, task_intervals
from mmtune.demo.machines import write_machines
from mmtune.modalities.spectrogram import spectrogram_picture

warnings.filterwarnings("ignore", message="IProgress")
out = Path(tempfile.mkdtemp(prefix="mmtune-"))
made = write_machines(out / "made", seed=3, machines=2, train_recordings=4, val_recordings=2)

# %% [markdown]
# ## The folder
#
# The recordings are synthesised here. Each is cut into four clips of one second; the file name says which recording a clip is from.

# %%
folders = {"train": out / "recordings", "val": out / "new_recordings"}
for split, folder in folders.items():
    for row in csv.DictReader((made / f"{split}.csv").open()):
        place = folder / row["group"] / Path(row["audio"]).name
        place.parent.mkdir(parents=True, exist_ok=True)
        (made / row["audio"]).rename(place)
{f.name: len(list(f.iterdir())) for f in sorted(folders["train"].iterdir())[:6]}


# %%
def listen(path, label=""):
    """A spectrogram (time to the right, 0 to 4 kHz upwards) and a player."""
    samples, rate = soundfile.read(path)
    print(label or path.parent.name)
    display(spectrogram_picture(samples, rate, 420, 100), Audio(samples, rate=rate))


for condition in ("healthy", "crack-severe", "scratch-severe", "outer-medium"):
    listen(sorted((folders["train"] / f"gearbox-{condition}").iterdir())[0])

# %% [markdown]
# ## Captions and groups
#
# `mmtune pack recordings --out DIR` takes the folder as it is: the subfolder's name becomes caption and group. Better captions, and the column
# `recording`, need a `metadata.csv` beside the files. Ten lines write it from the names.

# %%
FAULTS = {
    "outer": "outer race fault",
    "inner": "inner race fault",
    "crack": "hairline crack",
    "scratch": "scratch",
    "imbalance": "imbalance",
}


def describe(folder):
    """One row for each clip: file_name, text, group, machine, fault, severity, recording."""
    rows = []
    for path in sorted(folder.rglob("*.flac")):
        machine, fault, *severity = path.parent.name.split("-")
        condition = "no fault" if fault == "healthy" else f"a {severity[0]} {FAULTS[fault]}"
        rows.append(
            {
                "file_name": path.relative_to(folder).as_posix(),
                "text": f"{machine} with {condition}",
                "group": path.parent.name,
                "machine": machine,
                "fault": "none" if fault == "healthy" else fault,
                "severity": severity[0] if severity else "none",
                "recording": path.stem.rsplit("-c", 1)[0],
            }
        )
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


for folder in folders.values():
    describe(folder)
data = {split: mmtune.pack(folder, out / "data" / split).out for split, folder in folders.items()}
found = mmtune.doctor(data["train"], against=[data["val"]])
print("findings:", [f.message for f in found.findings] or "none")

# %% [markdown]
# No recording is in both splits: clips of one recording are nearly the same, and a test on them would measure memory.
#
# ## Train
#
# With `hf:laion/clap-htsat-unfused` as `model`, the learning rate would be 1e-5. Here three small random towers are trained from nothing, by the
# settings of `recipes/machine_sounds.yaml`.

# %%
run = mmtune.train(
    {
        "model": "tiny:clap@1",
        "data": {"train": data["train"], "batches": "spread"},
        "pairs": [["text", "audio"]],
        "objective": [{"loss": "info_nce", "positives": "mean", "smoothing": 0.1}],
        "augment": {"audio": {"shift": True, "polarity": True}},
        "train": {"epochs": 30, "batch_size": 64, "lr": 2e-3, "precision": "fp32"},
        "run": {"dir": str(out / "runs/sounds")},
    },
    quiet=True,
)
print(f"{run.pairs_per_second:.0f} pairs/s")

# %% [markdown]
# The last epoch is taken; nothing was chosen on the new recordings. Synthesised faults are easy to tell apart, so expect less of real ones (*Benchmarks* has a
# real motor, with and without bf16). On the new recordings:

# %%
result = mmtune.evaluate(run.artifact, data["val"], slices=["fault"])
display(result)

# %% [markdown]
# ## Which fault?
#
# By the votes of the nearest known clips. The 95% interval resamples whole recordings, because clips of one recording are not independent.

# %%
named = mmtune.evaluate(run.artifact, data["val"], task="knn", label="fault", reference=data["train"])
display(named.to_pandas())
print("\n".join(interval_lines(task_intervals(named, data["val"], "recording"), "recording")))

# %%
found = mmtune.predict(run.artifact, data["val"], task="knn", reference=data["train"], label="fault").to_pandas()
truth = pd.read_csv(folders["val"] / "metadata.csv").set_index("file_name")
opened = mmtune.open_data(data["val"])
meta = pd.DataFrame({c: opened.column(c) for c in ("fault", "severity", "recording")}, index=list(opened.ids))
found["truth"] = meta.loc[found["file"], "fault"].to_numpy()
table = pd.crosstab(found["truth"], found["class"])
figure, axis = plt.subplots(figsize=(4.4, 3.4), dpi=80)
axis.imshow(table, cmap="Greens")
for (i, j), count in np.ndenumerate(table.to_numpy()):
    axis.text(j, i, count, ha="center", va="center", fontsize=8)
axis.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", fontsize=8)
axis.set_yticks(range(table.shape[0]), table.index, fontsize=8)
axis.set_xlabel("predicted")
axis.set_ylabel("truth")
plt.show()

# %% [markdown]
# ## An alarm from normal recordings alone
#
# Faults that nobody has recorded yet have no class. `anomaly` measures the distance to the nearest normal clip; the threshold is set so that at most 5% of
# new normal clips are expected above it. (This model has heard faults in training, so it has an easy task; with towers that have not, compare figures of your own.)

# %%
alarms = mmtune.predict(
    run.artifact,
    data["val"],
    task="anomaly",
    reference=data["train"],
    normal="fault=none",
    threshold="0.05fpr",
    exclude_same="recording",
)
print(alarms.thresholds["audio"])
scores = alarms.to_pandas().set_index("file")
scores["fault"] = meta.loc[scores.index, "fault"]
scores["severity"] = meta.loc[scores.index, "severity"]
scores.groupby("severity")["alarm"].mean().rename("share of clips with an alarm")

# %%
area = mmtune.evaluate(
    run.artifact,
    data["val"],
    task="anomaly",
    reference=data["train"],
    normal="fault=none",
    machine="machine",
    exclude_same="recording",
)
display(area.to_pandas())
falsely, rightly, _ = roc_curve(scores["fault"] != "none", scores["anomaly_score"])
figure, axis = plt.subplots(figsize=(3.4, 3.2), dpi=80)
axis.plot(falsely, rightly, color="#2e9454")
axis.plot([0, 1], [0, 1], color="#ccc", linewidth=1)
axis.set_xlabel("false alarms")
axis.set_ylabel("faults found")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The clips with the highest and the lowest score:

# %%
where = {i: folders["val"] / i for i in meta.index}
order = scores.sort_values("anomaly_score")
for id in (order.index[-1], order.index[0]):
    listen(where[id], f"score {scores.loc[id, 'anomaly_score']:.2f}, truly {truth.loc[id, 'text']}")

# %% [markdown]
# ## Search by words
#
# The same vectors answer text queries.

# %%
with mmtune.Collection(out / "collection", create=True) as c:
    c.promote(c.build(run.artifact, data["val"], quiet=True).version, why="the first version")
    hits = {q: c.search(text=q, k=3).results for q in ("gearbox with a severe hairline crack", "fan with no fault")}
for query, results in hits.items():
    print("query:", query)
    for hit in results[:2]:
        listen(where[hit.id], f"{hit.score:.2f}  {truth.loc[hit.id, 'text']}")

# %% [markdown]
# ## Next
#
# - A folder where recordings arrive: `mmtune predict MODEL inbox --task knn --reference data/train --label fault --watch --out answers.jsonl`.
# - Towers with their own weights, such as YAMNet or AST: the page *Towers*. How sure a threshold is: the page *Predict*.
