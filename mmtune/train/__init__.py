"""Training: one loop; objectives, large batches, checkpoints. `mmtune.train(RECIPE)` is `mmtune.run.train`."""

from mmtune.callable import make_callable

make_callable(__name__, "mmtune.run:train")
