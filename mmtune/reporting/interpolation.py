"""Charts of RUN/interpolation.json: scores on the domain and on the retention data along the line from base to tuned model."""

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.reporting.plots import Chart, Series, line_chart, short_number


def interpolation_charts(document: JsonObject) -> list[Chart]:
    """Return two charts: both scores over the coefficient, and the domain score over the retention score."""
    points = sorted(document["points"], key=lambda p: p["coefficient"])
    coefficient = np.array([p["coefficient"] for p in points], float)
    domain = np.array([p["domain"] for p in points], float)
    # "general" is the name of "retention" in files of older versions.
    retention = np.array([p["retention"] if "retention" in p else p["general"] for p in points], float)
    metric, chosen = document["metric"], document["chosen"]
    over = line_chart(
        "Interpolation between base and tuned model",
        f"{metric}; chosen coefficient: {chosen:g}, {document['rule']}.",
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
        f"{metric} on the domain (y axis) and on the retention data (x axis): base {both(0)}, tuned {both(-1)}, chosen coefficient "
        f"({chosen:g}) {both(at)}{kept}",
        [
            Series("base to tuned", "tone0", retention, domain),
            Series("base", "tone1", retention[:1], domain[:1]),
            Series("chosen", "tone2", retention[at : at + 1], domain[at : at + 1]),
        ],
        "retention",
        dots=True,
    )
    return [over, against]
