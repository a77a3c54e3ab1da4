"""The feedback log in segments: exports read all of them, and contents of queries go with their last event."""

from mmtune.index.feedback import feedback
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.runtime.segmented_log import SegmentedLog
from tests.support.index_helpers import coll_fixture, shelf_fixture  # noqa: F401


def small(path, segments):
    log = FeedbackLog(path)
    log._segments = SegmentedLog(log.log, 600, segments, log._drop_contents)
    return log


def test_all_segments_count(coll):
    log = small(coll.path, 50)
    ids = coll.search(text="a red square", k=2).ids
    for n in range(30):
        log.add({"query": f"q-{n}", "item": ids[n % 2], "kind": "click", "modality": "text", "value": f"query {n}"})
    assert len(list(coll.path.glob("feedback.0*.jsonl"))) > 3
    assert len(FeedbackLog(coll.path).pairs()) == 30
    assert coll.export_feedback(coll.path.parent / "out").verdicts == 30


def test_contents_of_dropped_events_go(coll):
    log = small(coll.path, 2)
    for n in range(40):
        query = "q-often" if n % 2 else f"q-{n}"
        log.add({"query": query, "item": "0-001", "kind": "click", "modality": "text", "value": query})
    left = {e["query"] for e in log.events()}
    assert len(left) < 12 and "q-often" in left
    assert {p.read_text() for p in (coll.path / "feedback").iterdir()} == left


def test_the_limits_hold_a_gigabyte():
    assert feedback.LOG_BYTES * (feedback.LOG_SEGMENTS + 1) == 2**30
