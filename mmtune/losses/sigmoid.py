"""The sigmoid loss: every pair is its own yes-or-no question."""

from torch import Tensor
from torch.nn.functional import softplus

from mmtune.errors import RecipeError
from mmtune.losses.contrastive import ContrastiveBlock
from mmtune.losses.families import contrastive_loss


@contrastive_loss
def sigmoid(block: ContrastiveBlock, *, bias: float = -10.0) -> Tensor:
    """Sum over candidates of -log sigmoid(+-(scale * cosine + bias)), + for positives, one value a query [R].

    SigLIP (Zhai et al. 2023, arXiv 2303.15343). Needs a bias: without one the many negatives rule the early steps. For a
    model that has none, the objective learns one of its own that starts at the option `bias`.
    """
    if block.bias is None:
        raise RecipeError("the sigmoid loss needs a bias: pass one, or use a model that has one")
    logits = block.similarity * block.scale + block.bias
    return (softplus(-logits) * block.positives + softplus(logits) * block.negatives).sum(1)
