"""Cross-batch memory: identity, capacity, and the state of a resumed run."""

import copy

import pytest
import torch

from mmtune.training.build_objective import build_objective
from mmtune.training.large_batch.cross_batch_memory import CrossBatchMemory
from tests.support.losses_helpers import make_batch, unit

PAIR = [("a", "b")]


def scale_of(a, b):
    return torch.tensor(5.0), None


def rows(groups, start):
    return [(g, 100 + start + i, 500 + start + i, True) for i, g in enumerate(groups)]


def vectors(batch, seed):
    return {m: unit(int(batch.item_of_row[m].max()) + 1, 6, seed + i) for i, m in enumerate("ab")}


def batch_of(groups, start):
    batch = make_batch(rows(groups, start), ids=[f"r{start + i}" for i in range(len(groups))])
    batch.labels["id"] = torch.arange(len(groups)) + start + 1
    return batch


def test_queued_vectors_are_negatives_unless_related():
    first, second = batch_of([1, 2, 3], 0), batch_of([1, 9, 0], 3)
    z1, z2 = vectors(first, 1), vectors(second, 5)
    objective = build_objective([{"loss": "info_nce"}], PAIR, memory={"size": 10})
    plain = build_objective([{"loss": "info_nce"}], PAIR)
    assert objective(z1, first, scale_of)[0] == plain(z1, first, scale_of)[0]
    want = []
    for a, b in (("a", "b"), ("b", "a")):
        for i in range(3):
            candidates = [z2[b][j] for j in range(3)] + [z1[b][j] for j in range(3) if not (i == 0 and j == 0)]  # group 1
            logits = 5.0 * torch.stack([z2[a][i] @ c for c in candidates])
            want.append(float(torch.logsumexp(logits, 0) - logits[i]))
    assert float(objective(z2, second, scale_of)[0]) == pytest.approx(sum(want) / 6, rel=1e-5)


def test_a_row_is_not_a_negative_of_its_own_earlier_vector():
    batch = batch_of([0, 0, 0], 0)
    z = vectors(batch, 1)
    objective = build_objective([{"loss": "info_nce"}], PAIR, memory={"size": 10})
    first = objective(z, batch, scale_of)[0]
    assert objective(z, batch, scale_of)[0] == first  # every queued item is in the batch
    # the same rows under other content (an edited file): the row id alone excludes the earlier vector
    edited = batch_of([0, 0, 0], 0)
    for m in "ab":
        edited.labels[m] = edited.labels[m] + 7000
    stored = objective.memory.candidates("b", edited)
    assert len(stored.z) == 3
    value = objective(z, edited, scale_of)[0]
    want = []
    for a, b in (("a", "b"), ("b", "a")):
        for i in range(3):
            logits = 5.0 * torch.stack([z[a][i] @ z[b][j] for j in range(3)] + [z[a][i] @ z[b][j] for j in range(3) if j != i])
            want.append(float(torch.logsumexp(logits, 0) - logits[i]))
    assert float(value) == pytest.approx(sum(want) / 6, rel=1e-5)


def test_the_newest_items_are_kept_one_vector_a_content():
    memory = CrossBatchMemory(size=5)
    for step in range(4):
        batch = batch_of([0, 0, 0], step * 3 if step < 3 else 0)  # the last one repeats the first rows
        memory.push(vectors(batch, step * 10), batch)
    stored = memory.queues["a"]
    assert stored.content.tolist() == [100, 101, 102, 106, 107]
    assert torch.equal(stored.z[:3], vectors(batch_of([0, 0, 0], 0), 30)["a"])
    assert {k for k in stored.labels} == {"id", "group", "a", "b"}
    assert stored.labels["id"][1].tolist() == [1, 2, 3, 7, 8] and stored.labels["id"][0].tolist() == [0, 1, 2, 3, 4]


def test_the_queue_is_used_from_start_on_and_is_part_of_the_state(tmp_path):
    terms, memory = [{"loss": "info_nce"}], {"size": 8, "start": 2}
    batches = [batch_of([1, 2, 3], 3 * i) for i in range(4)]
    z = [vectors(b, 10 * i) for i, b in enumerate(batches)]
    whole, plain = build_objective(terms, PAIR, memory=memory), build_objective(terms, PAIR)
    values = [whole(v, b, scale_of)[0] for v, b in zip(z, batches, strict=True)]
    assert values[1] == plain(z[1], batches[1], scale_of)[0] and values[2] > plain(z[2], batches[2], scale_of)[0]
    half = build_objective(terms, PAIR, memory=memory)
    for v, b in zip(z[:2], batches[:2], strict=True):
        half(v, b, scale_of)
    torch.save(half.state_dict(), tmp_path / "s.pt")
    again = build_objective(terms, PAIR, memory=memory)
    again.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    assert [again(v, b, scale_of)[0] for v, b in zip(z[2:], batches[2:], strict=True)] == values[2:]


def test_evaluation_leaves_the_memory_alone():
    objective = build_objective([{"loss": "info_nce"}], PAIR, memory={"size": 8}).eval()
    batch = batch_of([1, 2], 0)
    before = copy.deepcopy(objective.memory.get_extra_state())
    objective(vectors(batch, 1), batch, scale_of)
    assert objective.memory.get_extra_state() == before


def test_the_default_loss_uses_the_memory_as_info_nce_does():
    first, second = batch_of([1, 2, 3], 0), batch_of([1, 9, 0], 3)
    values = {}
    for loss in ("auto", "info_nce"):
        objective = build_objective([{"loss": loss}], PAIR, memory={"size": 10})
        objective(vectors(first, 1), first, scale_of)
        values[loss] = objective(vectors(second, 5), second, scale_of)[0]
    assert values["auto"] == values["info_nce"]
    plain = build_objective([{"loss": "auto"}], PAIR)
    assert values["auto"] > plain(vectors(second, 5), second, scale_of)[0]


def test_the_state_of_a_resumed_run_follows_the_objective_to_its_device():
    """What is no parameter, too: the queue, and what a loss keeps as a plain tensor. "meta" stands for an accelerator."""
    made = build_objective([{"loss": "info_nce"}], PAIR, memory={"size": 4})
    batch = batch_of([1, 2, 0, 0], 0)
    made(vectors(batch, 0), batch, scale_of)
    again = build_objective([{"loss": "info_nce"}], PAIR, memory={"size": 4})
    again.load_state_dict(made.state_dict())
    again.to("meta")
    for queue in again.memory.queues.values():
        tensors = [queue.z, queue.content, queue.index, *(x for pair in queue.labels.values() for x in pair)]
        assert len(queue) == 4 and {t.device.type for t in tensors} == {"meta"}
