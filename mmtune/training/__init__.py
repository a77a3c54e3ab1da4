"""Training: the training loop, the objective, large batches, partial tuning, regularisation and checkpoints.

Callbacks of your own derive from `Callback`:

    from mmtune.training import Callback, CallbackContext
"""

from mmtune.training.callbacks import Callback, CallbackContext

__all__ = ["Callback", "CallbackContext"]
