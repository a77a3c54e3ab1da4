"""Wrong captions and copied photos: a share of the captions is given to other rows, and what finds or survives that is measured.

    LABEL_NOISE_TRAIN=packed/train LABEL_NOISE_VAL=packed/val LABEL_NOISE_IMAGE=timm:NAME@FILE LABEL_NOISE_TEXT=st:DIR \\
    python -m pytest tests/benchmarks/test_bench_label_noise.py -m bench -s        (LABEL_NOISE_SEEDS=3, LABEL_NOISE_SHARE=0.2)

Packed images and captions with groups. With each seed, captions and groups of the share are exchanged among its rows, so that each has
another group than before; 4% of the rows are added once more, encoded again at nine tenths of the size, half of them with the caption of
another group. One JSON line for each seed:

- `doctor`: precision and recall of the rows it suspects, with the base model and with one tuned on the noisy rows; copies that it finds
- `scores`: [hit@1 image->text, MAP image->text, MAP text->image] on clean validation rows, heads tuned on the clean rows, on the noisy
  rows with several losses and settings, without the doctor's suspects, and without the rows that are really wrong
- `mining`: share of mined negatives that in truth are positives, by guards
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmtune
from mmtune.embedding.feature_cache import share_features
from mmtune.evaluation.seed_statistics import spread_of

NAMES = ("TRAIN", "VAL", "IMAGE", "TEXT")
GIVEN = {name: os.environ.get(f"LABEL_NOISE_{name}") for name in NAMES}
SEEDS, SHARE = int(os.environ.get("LABEL_NOISE_SEEDS", "3")), float(os.environ.get("LABEL_NOISE_SHARE", "0.2"))
RECIPE = Path(__file__).parents[2] / "recipes" / "few_shot.yaml"
STEPS = ["train.epochs=8", "train.lr=1e-3", "run.trackers=[]"]

OFF = {
    "groups": False,
    "trust_groups": False,
    "relative_margin": None,
    "near_duplicates": False,
    "hub_cap": None,
}
GUARDS = {"default": {}, "groups not trusted": {"trust_groups": False}, "none": OFF}
SETTINGS = {
    "recipe": [],
    "robustness 0.3": ["objective.0.robustness=0.3"],
    "robustness 0.7": ["objective.0.robustness=0.7"],
    "own caption only": ["objective.0.positives=mask"],
    "sigmoid": ["objective=[{loss: sigmoid}]"],
    "triplet": ["objective=[{loss: triplet, mining: semi_hard}]"],
    "mining": ["mining={rounds: 2}"],
    "mining, groups not trusted": ["mining={rounds: 2, guards: {trust_groups: false}}"],
}


def noisy_rows(data, rng):
    """(rows with the true group in `true`, ids of the wrong rows, {id of a copy: id of its original})."""
    rows = [
        {"id": data.ids[i], "image": data.read(i, "image"), "text": data.read(i, "text").decode(), "group": g, "true": g}
        for i, g in enumerate(data.groups)
        if g is not None
    ]
    chosen = rng.permutation(len(rows))[: round(SHARE * len(rows))]
    chosen = sorted(chosen.tolist(), key=lambda i: rows[i]["group"])
    largest = max(np.unique([rows[i]["group"] for i in chosen], return_counts=True)[1])
    taken = [(rows[i]["text"], rows[i]["group"]) for i in np.roll(chosen, largest)]
    for i, (text, group) in zip(chosen, taken, strict=True):
        rows[i] = {**rows[i], "text": text, "group": group}
    wrong = {rows[i]["id"] for i in chosen}
    clean = [r for r in rows if r["id"] not in wrong]
    copies = {}
    for k, at in enumerate(rng.permutation(len(clean))[: round(0.04 * len(rows))].tolist()):
        photo = Image.open(io.BytesIO(clean[at]["image"])).convert("RGB")
        smaller = io.BytesIO()
        photo.resize((round(photo.width * 0.9), round(photo.height * 0.9))).save(smaller, "JPEG", quality=80)
        copy = {**clean[at], "id": f"copy-{k:04d}", "image": smaller.getvalue()}
        if k % 2:
            other = next(r for r in rng.permutation(clean).tolist() if r["true"] != copy["true"])
            copy |= {"text": other["text"], "group": other["group"]}
            wrong.add(copy["id"])
        rows.append(copy)
        copies[copy["id"]] = clean[at]["id"]
    return rows, wrong, copies


def suspects(data, model):
    return {i for f in mmtune.doctor(data, model).findings if f.code == "mislabel-image" for i in f.ids}


def measured(found, wrong):
    right = len(found & wrong)
    return {"found": len(found), "precision": round(right / max(len(found), 1), 3), "recall": round(right / len(wrong), 3)}


def false_negatives(artifact, data, rows, guards, out):
    """{direction: share of its mined negatives that in truth are positives}. A caption belongs to its group, a photo to its true one."""
    options = {"guards": guards}
    table = mmtune.mine(artifact, data, out, options, truth="true", quiet=True).to_pandas()
    table = table[table.verdict == "mined"]
    column = {"image": {r["id"]: r["true"] for r in rows}, "text": {r["id"]: r["group"] for r in rows}}
    shares = {}
    for name, part in table.groupby("direction"):
        a, b = name.split("->")
        same = part.query_id.map(column[a]) == part.negative_id.map(column[b])
        shares[name] = [round(float(same.mean()), 4), len(part)]
    return shares


@pytest.mark.bench
@pytest.mark.timeout(6 * 3600)
@pytest.mark.skipif(not all(GIVEN.values()), reason=f"needs LABEL_NOISE_{', LABEL_NOISE_'.join(NAMES)}")
def test_label_noise(tmp_path):
    towers = {"image": GIVEN["IMAGE"], "text": GIVEN["TEXT"]}
    clean, val = mmtune.open_data(GIVEN["TRAIN"]), mmtune.open_data(GIVEN["VAL"])
    scores = {}
    for seed in range(SEEDS):
        home = tmp_path / str(seed)
        rows, wrong, copies = noisy_rows(clean, np.random.default_rng(seed))

        def packed(name, kept, home=home):
            mmtune.pack(kept, home / name, group="group")
            return str(home / name)

        noisy = packed("noisy", rows)
        with share_features():
            line = {
                "bench": "label noise",
                "seed": seed,
                "rows": len(rows),
                "wrong": len(wrong),
                "copies": len(copies),
                "scores": {},
            }

            def tuned(name, data, settings=(), home=home, line=line, seed=seed):
                place = home / name.replace(" ", "-")
                where = [f"data.train={data}", f"run.dir={place}", f"train.seed={seed}", "data.val=null"]
                towers_of = [f"model.{m}={spec}" for m, spec in towers.items()]
                artifact = mmtune.train(RECIPE, [*towers_of, *where, *STEPS, *settings], quiet=True).artifact
                found = mmtune.evaluate(artifact, val).directions
                line["scores"][name] = [
                    round(found[d].metrics[m], 4)
                    for d, m in (("image->text", "hit@1"), ("image->text", "map"), ("text->image", "map"))
                ]
                return artifact

            of_noisy = {name: tuned(f"noisy, {name}", noisy, settings) for name, settings in SETTINGS.items()}
            line["doctor"] = {}
            for name, model in (("base", mmtune.load(towers)), ("tuned", mmtune.load(of_noisy["recipe"]))):
                found = suspects(noisy, model)
                line["doctor"][name] = measured(found, wrong)
                tuned(f"without suspects of {name}", packed(f"kept-{name}", [r for r in rows if r["id"] not in found]))
            near = {i for f in mmtune.doctor(noisy).findings if f.code.startswith("near-") for i in f.ids}
            line["doctor"]["copies found"] = round(len(near & {*copies}) / len(copies), 3)
            tuned("without wrong rows", packed("right", [r for r in rows if r["id"] not in wrong]))
            tuned("clean rows", GIVEN["TRAIN"])
            line["mining"] = {
                name: false_negatives(of_noisy["recipe"], noisy, rows, guards, home / f"{name}.parquet")
                for name, guards in GUARDS.items()
            }
        print(json.dumps(line), flush=True)
        for name, found in line["scores"].items():
            scores.setdefault(name, []).append(found)
    over_seeds = {name: [spread_of(v) for v in np.transpose(found).tolist()] for name, found in scores.items()}
    table = {name: [[s["mean"], s["low"], s["high"]] for s in spreads] for name, spreads in over_seeds.items()}
    recipe = np.array(scores["noisy, recipe"])
    gains = {
        n: [[s["mean"], s["low"], s["high"]] for s in map(spread_of, (np.array(v) - recipe).T.tolist())]
        for n, v in scores.items()
    }
    print(
        json.dumps({"bench": "label noise", "seeds": SEEDS, "mean, low, high": table, "minus the recipe on noisy rows": gains})
    )
    assert table["clean rows"][1][0] > table["noisy, recipe"][1][0]
