"""Do mined negatives help on your data? No mining, naive top-k and guarded mining, on the same pairs, over several seeds.

  python recipes/does_mining_help.py recipes/catalog_images.yaml runs/base/artifact data/train data/test --out runs/mining \
      train.epochs=2 train.batch_size=32 train.lr=3.0e-4

Every arm trains BASE on TRAIN with the recipe and the overrides, and is evaluated on TEST: MAP and hit@1 of all queries, and of
the confusable ones, those whose best wrong item scores at least 0.95 of the best relevant one under BASE. Stopped and started
again, it trains what is missing. The last lines are means and standard deviations over the seeds.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

import mmtune
from mmtune.contracts import Embeddings, direction
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.relevance.items import unique_items
from mmtune.relevance.positives import relevant_blocks

NAIVE = {"groups": False, "trust_groups": False, "relative_margin": None, "near_duplicates": False, "hub_cap": None}
ARMS = {"none": None, "naive": {"guards": NAIVE}, "guarded": {}}
NEAR = 0.95


def confusable(vectors: dict[str, Embeddings], a: str, b: str) -> set[str]:
    """Ids of the queries of modality a whose best wrong item of modality b scores at least NEAR times the best relevant one."""
    queries, candidates = unique_items(a, vectors[a]), unique_items(b, vectors[b])
    ids = set()
    for part in relevant_blocks(queries, candidates, 1024):
        scores_QC = np.asarray(queries.query_vectors[part.start : part.stop]) @ np.asarray(candidates.vectors).T
        relevant_QC = np.zeros(scores_QC.shape, bool)
        relevant_QC[np.repeat(np.arange(len(scores_QC)), part.items.counts), part.items.values] = True
        best_relevant = np.where(relevant_QC, scores_QC, -2).max(1)
        best_wrong = np.where(relevant_QC, -2, scores_QC).max(1)
        near = part.items.counts.astype(bool) & (best_wrong >= best_relevant - (1 - NEAR) * np.abs(best_relevant))
        ids |= {queries.ids[part.start + i] for i in np.flatnonzero(near)}
    return ids


def scores(vectors: dict[str, Embeddings], hard: dict[str, set[str]]) -> dict[str, float]:
    """{"a->b all map": value, "a->b confusable hit@1": value, ...}; hard: direction -> ids of its confusable queries."""
    out = {}
    for name, evaluated in evaluate_vectors(vectors, ks=(1,), within=False, per_query=True).directions.items():
        inside = np.array([i in hard[name] for i in evaluated.query_ids])
        if inside.any():
            for which, keep in (("all", slice(None)), ("confusable", inside)):
                out |= {f"{name} {which} {m}": float(np.mean(evaluated.values[m][keep])) for m in ("map", "hit@1")}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("recipe", "base", "train", "test"):
        parser.add_argument(name)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--mining", type=json.loads, default={}, help="options of `mining:` for both mining arms, as JSON")
    args = parser.parse_intermixed_args()
    test, base = open_data(args.test), mmtune.load(args.base)
    names = [m for m in test.modalities if m in base.towers]
    start = embed_data(base, test, names, quiet=True)
    hard = {direction(a, b): confusable(start, a, b) for a in names for b in names if a != b}
    print(json.dumps({"arm": "base", "confusable": {d: len(h) for d, h in hard.items()}, **scores(start, hard)}), flush=True)
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            run, options = args.out / f"{arm}-{seed}", ARMS[arm]
            if not (run / "artifact" / "mmtune.json").is_file():
                overrides = [f"model={args.base}", f"data.train={args.train}", f"run.dir={run}", f"train.seed={seed}"]
                mining = [] if options is None else [f"mining={json.dumps({**args.mining, **options})}"]
                mmtune.train(args.recipe, [*overrides, "data.val=null", *args.overrides, *mining], resume=run.exists())
            results[arm].append(scores(embed_data(mmtune.load(run / "artifact"), test, names, quiet=True), hard))
            print(json.dumps({"arm": arm, "seed": seed, **{k: round(v, 4) for k, v in results[arm][-1].items()}}), flush=True)
    for key in results[args.arms[0]][0]:
        each = {arm: [v[key] for v in values] for arm, values in results.items()}
        cells = [f"{a} {statistics.mean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for a, v in each.items()]
        print(f"{key:32}", "  ".join(cells))


if __name__ == "__main__":
    main()
