"""What the words of a report mean. Metrics are explained in `mmtune.evaluation`; here in one sentence each."""

import re

TERMS = {
    "query": "What is searched for: one image, sound or text of the test data.",
    "candidate": "An item that can be a result. The candidates of a direction are all items of its second modality.",
    "direction": "text->image means: a text is the query, images are the candidates. Within one modality the query itself is no candidate.",
    "relevant": "A right result: a candidate of the query's group (or of its row, without groups; or as judged, with --qrels).",
    "group": "Rows that show the same thing, e.g. all photos of one product (the column given to pack --group).",
    "rank": "The position of a result; 1 is the best one.",
    "score": "The cosine similarity of two embeddings: 1 for the same direction, 0 for unrelated ones.",
    "embedding": "The vector of an item that the model computes; similar items have vectors of a similar direction.",
    "before, after": "The base model, and the tuned one (the candidate model), on the same queries.",
    "hit@k": "The share of queries with a relevant candidate among the first k results.",
    "recall@k": "The share of a query's relevant candidates that are among the first k results, as a mean over the queries.",
    "precision@k": "The share of the first k results that are relevant, as a mean over the queries.",
    "MRR": "Mean reciprocal rank: the mean of 1 / rank of the first relevant result.",
    "MAP": "Mean average precision: the precision at each relevant result, averaged over a query's relevant ones and over the queries.",
    "nDCG@k": "Normalised discounted cumulative gain: relevant results count more the higher they rank; 1 is the best order possible.",
    "gate": "The conditions that the tuned model must meet: a gain in one metric, and no loss where a guard forbids it.",
    "guard": "A direction, slice or retention set on which the metric must not fall by more than the gate allows.",
    "slice": "A subset of the queries, e.g. those with one value of a column; all candidates are searched.",
    "retention": "General data on which the model should stay as good as before tuning.",
    "95% confidence interval": "The range that holds the true mean difference in 95 of 100 such comparisons. If it contains 0, the difference may be chance.",
    "bootstrap": "The interval comes from repeating the comparison on queries drawn with replacement, whole clusters at a time.",
    "cluster": "Queries that are not independent of each other, by default those of one group.",
    "seed": "The start of the random numbers of one training run; several seeds show how much a result depends on chance.",
    "sd": "Standard deviation.",
    "confusion matrix": "Rows are true classes, columns are predicted ones. A cell holds the number of rows; the diagonal is right.",
    "accuracy": "The share of rows whose predicted class is the true one.",
    "macro-F1": "The mean over the classes of the rows of F1 = 2 correct / (true + predicted); rare classes count as much as frequent ones.",
    "AUROC": "The probability that a random relevant (or anomalous) one scores higher than a random other one; 0.5 is chance.",
    "principal components": "The two directions in which the embeddings vary most; the map is a projection onto them.",
    "modality gap": "The distance between the mean embeddings of two modalities.",
    "loss": "What training minimises; lower is better, but only on the test data is it shown whether the model is.",
    "hard negative": "A wrong candidate that the model ranks high; training on it teaches fine distinctions.",
    "false negative": "A relevant candidate that is used as a negative by mistake.",
    "spectrogram": "A picture of a sound: time in seconds from left to right, frequency in Hz or kHz from bottom to top, brightness in dB.",
}
"""{term: what it means, in one or two sentences}."""


def explain(name: str) -> str:
    """Return what a metric or another term means, or "": `hit@5` is explained as `hit@k`, in upper or lower case."""
    key = re.sub(r"@\d+$", "@k", name.strip().lower()).replace("_", "-")
    return next((meaning for term, meaning in TERMS.items() if term.lower() == key), "")
