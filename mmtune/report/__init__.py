"""Results as one HTML file that explains itself. The package can be called: `mmtune.report(RUN, "out.html")`."""

from mmtune.callable import make_callable

make_callable(__name__, "mmtune.report.build:report")
