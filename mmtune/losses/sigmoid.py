"""The sigmoid loss, which classifies every (query, candidate) pair independently as positive or negative."""

from torch import Tensor
from torch.nn.functional import softplus

from mmtune.errors import RecipeError
from mmtune.losses.contrastive import ContrastiveBlock
from mmtune.losses.families import contrastive_loss


@contrastive_loss
def sigmoid(block: ContrastiveBlock, *, bias: float = -10.0) -> Tensor:
    """For each query [R], sum over candidates of -log sigmoid(z) for positives and -log sigmoid(-z) for negatives.

    Here z = scale * cosine + bias. SigLIP (Zhai et al. 2023, arXiv 2303.15343). The loss needs a bias, because otherwise the
    many negatives dominate the first steps. If the model has no logit bias, the objective learns one during training. The
    option `bias` is its initial value.
    """
    if block.bias is None:
        raise RecipeError("the sigmoid loss needs a logit bias: pass one, or use a model that has one")
    logits = block.similarity * block.scale + block.bias
    return (softplus(-logits) * block.positives + softplus(logits) * block.negatives).sum(1)
