"""RUN/interpolation.json as charts: domain against retention, along the weights between base and tuned model."""

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.reporting.plots import Chart, Series, line_chart, short_number


def interpolation_charts(document: JsonObject) -> list[Chart]:
    """Both scores over the coefficient, and one against the other with the chosen coefficient marked."""
    points = sorted(document["points"], key=lambda p: p["coefficient"])
    coefficient = np.array([p["coefficient"] for p in points], float)
    domain = np.array([p["domain"] for p in points], float)
    retention = np.array([p["retention"] if "retention" in p else p["general"] for p in points], float)  # its earlier name
    metric, chosen = document["metric"], document["chosen"]
    over = line_chart(
        "Weights between base and tuned",
        f"{metric}; chosen: {chosen:g}, {document['rule']}.",
        [Series("domain", "tone0", coefficient, domain), Series("retention", "tone1", coefficient, retention)],
        "0: base, 1: tuned",
        dots=True,
    )
    at = int(np.argmin(np.abs(coefficient - chosen)))
    kept = f": {retention[at] / retention[0]:.1%} of the base's retention score." if retention[0] > 0 else "."

    def both(i: int) -> str:
        return f"{short_number(float(domain[i]))} and {short_number(float(retention[i]))}"

    against = line_chart(
        "Domain against retention",
        f"{metric} on the domain (upwards) against the retention data: the base has {both(0)}, the tuned end {both(-1)}, the "
        f"chosen coefficient ({chosen:g}) {both(at)}{kept}",
        [
            Series("base to tuned", "tone0", retention, domain),
            Series("base", "tone1", retention[:1], domain[:1]),
            Series("chosen", "tone2", retention[at : at + 1], domain[at : at + 1]),
        ],
        "retention",
        dots=True,
    )
    return [over, against]
