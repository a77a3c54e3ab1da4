"""What the page needs: the next question of an annotator, the answers, and the values as HTML."""

import threading
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmtune import modalities
from mmtune.data.shards.dataset import Data
from mmtune.errors import Rejected
from mmtune.html.render import render_macro, trusted
from mmtune.labelling.answer_log import ANSWERS, RETRACTED, UNSURE, AnswerLog, Question
from mmtune.labelling.choose_questions import choose
from mmtune.labelling.question_pool import QuestionPool

BATCH = 10
"""Questions that are chosen at once; then the answers are taken into account."""
SHARED = 5
"""Every SHARED-th question of an annotator is one that another annotator has answered."""
CONTEXT = 4
"""Other near candidates that are shown below a question."""
LARGE_BYTES = 4 * 2**20
"""Larger values are shown as thumbnails."""
REASONS = {
    "unsure": "the model is unsure about this pair",
    "disagreement": "the two models disagree about this pair",
    "dense": "many rows without a label are like this one",
    "random": "drawn at random",
}
TEMPLATE = "label.html.j2"


class LabelSession:
    """Questions and answers of one directory. All methods may be called by several threads."""

    def __init__(self, data: Data, pool: QuestionPool, log: AnswerLog, strategies: Sequence[str], seed: int = 0):
        self.data, self.pool, self.log, self.strategies, self.seed = data, pool, log, list(strategies), seed
        self.query_modality, self.item_modality = pool.direction.split("->")
        self._rows = {id: i for i, id in enumerate(data.ids)}
        pairs = ((pool.queries[q], pool.candidates[c]) for q, c in pool.pair.tolist())
        self._pair_of = {pair: i for i, pair in enumerate(pairs)}
        self._near: dict[int, list[int]] = {}
        for i in np.lexsort((pool.rank, pool.pair[:, 0])).tolist():
            self._near.setdefault(int(pool.pair[i, 0]), []).append(int(pool.pair[i, 1]))
        self._queue: dict[str, list[Question]] = {}
        self._guard = threading.RLock()
        self._card = lru_cache(512)(self._draw)

    # --- questions and answers -----------------------------------------------------------------------------------------

    def next(self, annotator: str) -> Question | None:
        """The next question of an annotator; None when there is nothing left to ask."""
        with self._guard:
            own = self.log.of(annotator)
            queue = [q for q in self._queue.get(annotator, []) if q.key not in own]
            if not queue:
                queue = self._choose(annotator, own)
            self._queue[annotator] = queue
            return queue[0] if queue else None

    def _choose(self, annotator: str, own: dict[tuple[str, str, str], str]) -> list[Question]:
        """The next BATCH of an annotator: new pairs, and now and then one that somebody else has answered."""
        lines = [line for line in self.log.lines() if line["direction"] == self.pool.direction]
        graded = [
            (at, line["answer"])
            for line in lines
            if ANSWERS[line["answer"]] is not None and (at := self._pair_of.get((line["query"], line["item"]))) is not None
        ]
        asked = np.array([at for at, _ in graded], np.int64)
        match = np.array([ANSWERS[answer] == 1 for _, answer in graded], bool)
        unsure = [self._pair_of.get((line["query"], line["item"])) for line in lines if line["answer"] == UNSURE]
        waiting = [
            self._pair_of.get((q.query, q.item)) for name, queue in self._queue.items() for q in queue if name != annotator
        ]
        skip = np.array([at for at in (*unsure, *waiting) if at is not None], np.int64)
        chosen = choose(self.pool, BATCH, self.strategies, asked, match, self.seed, skip)
        new = [Question(*self._ids(at), self.pool.direction, reason) for at, reason in chosen]
        others = {
            key: Question(*key, "another annotator has answered it")
            for line in lines
            if line["annotator"] != annotator and (key := (line["query"], line["item"], line["direction"])) not in own
        }
        shared = list(others.values())
        if not new:
            return shared[:BATCH]
        out: list[Question] = []
        for question in new:
            if len(out) % SHARED == SHARED - 1 and shared:
                out.append(shared.pop(0))
            out.append(question)
        return out

    def _ids(self, at: int) -> tuple[str, str]:
        q, c = self.pool.pair[at].tolist()
        return self.pool.queries[q], self.pool.candidates[c]

    def answer(self, question: Question, answer: str, annotator: str) -> None:
        """Record an answer and update judgments.jsonl."""
        with self._guard:
            self.log.add(question, answer, annotator)
            self.log.publish()

    def take_back(self, annotator: str) -> Question | None:
        """Take the annotator's last answer back; it becomes the next question again. None if there is none."""
        with self._guard:
            own = [line for line in self.log.lines() if line["annotator"] == annotator]
            if not own:
                return None
            last = own[-1]
            question = Question(last["query"], last["item"], last["direction"], last["reason"])
            self.answer(question, RETRACTED, annotator)
            self._queue[annotator] = [question, *self._queue.get(annotator, [])]
            return question

    def counts(self, annotator: str) -> dict[str, int]:
        """Answers of an annotator by kind, and "all": answers of all annotators."""
        lines = self.log.lines()
        own = [line["answer"] for line in lines if line["annotator"] == annotator]
        return {**{a: own.count(a) for a in ANSWERS}, "all": len(lines)}

    # --- HTML ----------------------------------------------------------------------------------------------------------

    def heading(self, annotator: str) -> str:
        """Counts and agreement, as HTML."""
        counts = self.counts(annotator)
        own = sum(counts[a] for a in ANSWERS)
        agreement = self.log.agreement()
        with_others = f"{agreement}" if agreement.pairs else ""
        return render_macro(TEMPLATE, "heading", annotator, own, counts, with_others)

    def show(self, question: Question | None, number: int) -> str:
        """A question as HTML: the query, the candidate, and other near candidates.

        number: a number that differs from that of the question before, by which the page's script knows that a new one is shown
        """
        if question is None:
            return render_macro(TEMPLATE, "nothing_left", number)
        query_card = self._card(question.query, self.query_modality, True)
        item_card = self._card(question.item, self.item_modality, True)
        at = self._pair_of.get((question.query, question.item))
        near = self._near.get(int(self.pool.pair[at, 0]), []) if at is not None else []
        others = [self.pool.candidates[c] for c in near if self.pool.candidates[c] != question.item][:CONTEXT]
        cards = [(id, self._card(id, self.item_modality, False)) for id in others]
        return render_macro(
            TEMPLATE,
            "question",
            number,
            question.query,
            query_card,
            question.item,
            item_card,
            REASONS.get(question.reason, question.reason),
            cards,
        )

    def _draw(self, id: str, modality: str, large: bool) -> str:
        """A value as HTML, large for the pair that is judged, where a detail may decide. The score is not shown: it would sway people."""
        row = self._rows.get(id)
        if row is None:
            return render_macro(TEMPLATE, "missing", "this row is not in the data any more")
        try:
            data, kind = self.data.read(row, modality), modalities.get(modality)
            return trusted(kind.to_html(data) if large and len(data) <= LARGE_BYTES else kind.thumbnail_html(data, id))
        except (Rejected, NotImplementedError) as e:
            return render_macro(TEMPLATE, "missing", str(e) or "this value cannot be shown")
