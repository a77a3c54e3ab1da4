"""RUN/interpolation.json -> what is given for what, on the way from the base's weights to the tuned ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmtune.reporting.plots import Chart, chart, number


def between(found: Mapping[str, Any]) -> list[Chart]:
    """Both scores over the coefficient, and one against the other with the chosen place marked."""
    points = sorted(found["points"], key=lambda p: p["coefficient"])
    x, domain, general = (np.array([p[k] for p in points], float) for k in ("coefficient", "domain", "general"))
    told = f"{found['metric']}; chosen: {found['chosen']:g}, {found['rule']}."
    curves = [("domain", "tone0", x, domain), ("general", "tone1", x, general)]
    over = chart("Weights between base and tuned", told, curves, "0: base, 1: tuned", dots=True)
    at = int(np.argmin(np.abs(x - found["chosen"])))
    kept = f": {general[at] / general[0]:.1%} of the general skill." if general[0] > 0 else "."
    told = (
        f"{found['metric']} on the domain, upwards, against the general skill: the base has {number(float(domain[0]))} and "
        f"{number(float(general[0]))}, the tuned end {number(float(domain[-1]))} and {number(float(general[-1]))}, the chosen "
        f"place ({found['chosen']:g}) {number(float(domain[at]))} and {number(float(general[at]))}{kept}"
    )
    along = [
        ("base to tuned", "tone0", general, domain),
        ("base", "tone1", general[:1], domain[:1]),
        ("chosen", "tone2", general[at : at + 1], domain[at : at + 1]),
    ]
    return [over, chart("Domain against general skill", told, along, "general", dots=True)]
