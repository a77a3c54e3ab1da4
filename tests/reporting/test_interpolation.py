"""The interpolation between base and tuned weights as two charts."""

from mmtune.reporting.interpolation import interpolation_charts
from mmtune.reporting.learning_curves import learning_curves

DOCUMENT = {
    "metric": "map",
    "rule": "the highest domain + 1 * general",
    "chosen": 0.5,
    "points": [
        {"coefficient": 1.0, "domain": 0.7, "retention": 0.4},
        {"coefficient": 0.0, "domain": 0.2, "retention": 0.8},
        {"coefficient": 0.5, "domain": 0.6, "retention": 0.78},
    ],
}


def test_both_pictures_hold_every_point_in_order():
    over, along = interpolation_charts(DOCUMENT)
    assert [c.name for c in over.curves] == ["domain", "retention"] and all(len(c.dots) == 3 for c in over.curves)
    line, base, chosen = along.curves
    assert len(line.dots) == 3 and line.dots[0] == base.dots[0] and line.dots[1] == chosen.dots[0]
    xs = [x for x, _ in line.dots]
    assert xs == sorted(xs, reverse=True)  # retention falls from base to tuned
    assert "keeps" not in along.caption
    assert "chosen coefficient (0.5) 0.6 and 0.78: 97.5% of the base's retention score." in along.caption
    assert [c.title for c in learning_curves([], DOCUMENT)] == [
        "Interpolation between base and tuned model",
        "Domain against retention",
    ]


def test_a_base_without_skill_divides_by_nothing():
    flat = {**DOCUMENT, "points": [{**p, "retention": 0.0} for p in DOCUMENT["points"]]}
    assert interpolation_charts(flat)[1].caption.endswith("0.6 and 0.")


def test_the_key_of_earlier_versions_is_read():
    points = [{"general" if k == "retention" else k: v for k, v in p.items()} for p in DOCUMENT["points"]]
    assert interpolation_charts({**DOCUMENT, "points": points}) == interpolation_charts(DOCUMENT)
