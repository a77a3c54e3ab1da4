"""Classification by the nearest description, against plain loops; TREC files of `mmtune eval`."""

import json

import numpy as np

from mmtune.cli.dispatch import dispatch
from mmtune.contracts import Embeddings
from mmtune.evaluation.tasks.classify import classifications, classify_by_descriptions, names_classes
from mmtune.evaluation.tasks.knn import classify_among_themselves
from tests.support import corpora


def embedded(rng, rows, groups, contents, name):
    z = rng.normal(size=(max(contents) + 1, 8))[contents].astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    ids = [f"r{i}" for i in range(rows)]
    labels = {"id": np.arange(1, rows + 1), name: np.array(contents, np.int64) + 1}
    return Embeddings(ids, groups, labels, z)


def test_accuracy_and_macro_f1_equal_plain_loops():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = [None if rng.random() < 0.1 else f"c{rng.integers(5)}" for _ in range(60)]
        captions = [int(str(g or "c9")[1:]) * 2 + int(rng.integers(2)) for g in groups]
        vectors = {"a": embedded(rng, 60, groups, list(range(60)), "a"), "b": embedded(rng, 60, groups, captions, "b")}
        classified = classify_by_descriptions(vectors, ("a", "b"))
        assert names_classes(vectors["b"], "b") and not names_classes(vectors["a"], "a")
        prompts = {}
        for g in sorted({g for g in groups if g}):
            own = {w: vectors["b"].vectors[i] for i, (w, x) in enumerate(zip(captions, groups, strict=True)) if x == g}
            mean = np.sum(list(own.values()), 0)
            prompts[g] = mean / np.linalg.norm(mean)
        guess = [max(prompts, key=lambda g, v=v: float(v @ prompts[g])) for v in vectors["a"].vectors]
        pairs = [(t, p) for t, p in zip(groups, guess, strict=True) if t]
        assert classified.rows == len(pairs) and classified.skipped == 60 - len(pairs)
        assert np.isclose(classified.accuracy, np.mean([t == p for t, p in pairs]))
        scores = []
        for c in {x for pair in pairs for x in pair}:
            right = sum(t == p == c for t, p in pairs)
            scores.append(2 * right / (sum(t == c for t, _ in pairs) + sum(p == c for _, p in pairs)))
        assert np.isclose(classified.macro_f1, np.mean(scores))
        for i, t in enumerate(classified.classes):
            for j, p in enumerate(classified.classes):
                assert classified.confusion[i, j] == pairs.count((t, p))


def test_classes_by_neighbours_equal_plain_loops():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = [None if rng.random() < 0.1 else f"c{rng.integers(5)}" for _ in range(60)]
        contents = rng.integers(0, 45, 60).tolist()
        e = embedded(rng, 60, groups, contents, "a")
        classified = classify_among_themselves({"a": e}, "a", k=4)
        items: dict[int, set[str]] = {}
        for c, g in zip(contents, groups, strict=True):
            items.setdefault(c, set()).update([g] if g else [])
        known = [(e.vectors[contents.index(c)].astype(float), next(iter(g))) for c, g in items.items() if len(g) == 1]
        pairs = []
        for i, (z, truth) in enumerate(known):
            near = sorted(((float(z @ other), g) for j, (other, g) in enumerate(known) if j != i), reverse=True)[:4]
            votes: dict[str, float] = {}
            for score, g in near:
                votes[g] = votes.get(g, 0) + np.exp(score / 0.07)
            pairs.append((truth, max(votes, key=votes.__getitem__)))
        assert (
            classified.rows == len(pairs) and classified.skipped == len(items) - len(pairs) and classified.how == "neighbours"
        )
        for i, t in enumerate(classified.classes):
            for j, p in enumerate(classified.classes):
                assert classified.confusion[i, j] == pairs.count((t, p))


def test_descriptions_classify_where_they_name_classes_and_neighbours_where_not():
    rng = np.random.default_rng(0)
    groups = [f"c{i % 4}" for i in range(40)]
    sound, own = embedded(rng, 40, groups, list(range(40)), "audio"), embedded(rng, 40, groups, list(range(40)), "text")
    named = embedded(rng, 40, groups, [i % 4 for i in range(40)], "text")
    assert [(c.direction, c.how) for c in classifications({"audio": sound, "text": named})] == [("audio->text", "descriptions")]
    assert [(c.direction, c.how) for c in classifications({"audio": sound, "text": own})] == [
        ("audio->audio", "neighbours"),
        ("text->text", "neighbours"),
    ]
    assert [c.direction for c in classifications({"audio": sound})] == ["audio->audio"]
    sound.groups[:] = [f"g{i}" for i in range(40)]
    assert classifications({"audio": sound}) == []


def test_eval_writes_trec_files(tmp_path, capsys):
    import ir_measures

    data = corpora.packed(tmp_path, 12, 1, ("image", "text"))
    assert dispatch("eval", ["tiny:clip", data, "--trec", str(tmp_path / "t"), "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = {f"{d.replace('->', '-to-')}.{end}" for d in document["directions"] for end in ("run", "qrels")}
    assert {p.name for p in (tmp_path / "t").iterdir()} == names and names
    for d, direction in document["directions"].items():
        stem = str(tmp_path / "t" / d.replace("->", "-to-"))
        qrels, run = ir_measures.read_trec_qrels(stem + ".qrels"), ir_measures.read_trec_run(stem + ".run")
        theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]
        assert np.isclose(theirs, direction["metrics"]["ndcg@10"], atol=1e-9)
