"""The sweep between base and tuned as two pictures."""

from mmtune.reporting.interpolation import between
from mmtune.reporting.learning_curves import learning

FOUND = {
    "metric": "map",
    "rule": "the highest domain + 1 * general",
    "chosen": 0.5,
    "points": [
        {"coefficient": 1.0, "domain": 0.7, "general": 0.4},
        {"coefficient": 0.0, "domain": 0.2, "general": 0.8},
        {"coefficient": 0.5, "domain": 0.6, "general": 0.78},
    ],
}


def test_both_pictures_hold_every_point_in_order():
    over, along = between(FOUND)
    assert [c.name for c in over.curves] == ["domain", "general"] and all(len(c.dots) == 3 for c in over.curves)
    line, base, chosen = along.curves
    assert len(line.dots) == 3 and line.dots[0] == base.dots[0] and line.dots[1] == chosen.dots[0]
    xs = [x for x, _ in line.dots]
    assert xs == sorted(xs, reverse=True)  # general skill falls from base to tuned
    assert "keeps" not in along.told and "the chosen place (0.5) 0.6 and 0.78: 97.5% of the general skill." in along.told
    assert [c.title for c in learning([], FOUND)] == ["Weights between base and tuned", "Domain against general skill"]


def test_a_base_without_skill_divides_by_nothing():
    flat = {**FOUND, "points": [{**p, "general": 0.0} for p in FOUND["points"]]}
    assert between(flat)[1].told.endswith("0.6 and 0.")
