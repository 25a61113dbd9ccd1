"""Training losses: plain functions of logits. T tokens, N negatives."""

import torch.nn.functional as F
from torch import Tensor


def binary_cross_entropy(target_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Binary cross-entropy of the target against its negatives (SASRec, section III-E), a mean over T.

    Args:
        target_logits: ``[T]``.
        negative_logits: ``[T, N]``; the negatives' terms are summed, so with one it is the paper's loss.
    """
    return (F.softplus(-target_logits) + F.softplus(negative_logits).sum(dim=1)).mean()


def sampled_softmax(
    target_logits: Tensor,
    negative_logits: Tensor,
    target_log_probability: Tensor | None = None,
    negative_log_probability: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of the target among itself and N sampled negatives, a mean over T.

    With the sampler's log-probabilities, each is taken off its logit, which makes the gradient that of
    the full softmax in expectation as N grows (Bengio & Senecal 2008; Jean et al. 2015, eq. 8 to 11).
    A uniform sampler needs none. The log-probabilities presume that a negative may be the target; where
    such hits are left out by -inf, the target's is ``-log(N)`` instead.

    Args:
        target_logits: ``[T]``.
        negative_logits: ``[T, N]``; -inf leaves a negative out.
        target_log_probability: ``[T]``, of drawing the target as a negative.
        negative_log_probability: ``[N]``.
    """
    if target_log_probability is not None:
        target_logits = target_logits - target_log_probability
    if negative_log_probability is not None:
        negative_logits = negative_logits - negative_log_probability
    # Not one tensor of target and negatives together, which would copy all of the latter.
    return F.softplus(negative_logits.logsumexp(dim=1) - target_logits).mean()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy over the whole catalogue, a mean over T.

    Args:
        logits: ``[T, I + 1]``; column 0, the padding, is left out.
        targets: ``int64[T]``, items from 1.
    """
    return F.cross_entropy(logits[:, 1:], targets - 1)


def bpr_max(target_logits: Tensor, negative_logits: Tensor, penalty: float = 1.0) -> Tensor:
    """BPR-max with score regularisation (Hidasi & Karatzoglou 2018, eq. 10), a mean over T.

        -log sum_j s_j sigma(r_i - r_j) + penalty * sum_j s_j r_j ** 2,    s = softmax of the negatives' scores

    Args:
        target_logits: ``[T]``, r_i.
        negative_logits: ``[T, N]``, r_j; -inf leaves a negative out.
        penalty: weight of the regularisation.
    """
    log_share = negative_logits.log_softmax(dim=1)
    kept = negative_logits.isfinite()
    scores = negative_logits.masked_fill(~kept, 0.0)
    log_ranked = F.logsigmoid(target_logits[:, None] - scores)
    ranked = -(log_share + log_ranked).logsumexp(dim=1)
    return (ranked + penalty * (log_share.exp() * scores.square()).sum(dim=1)).mean()


def top1_max(target_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """TOP1-max (Hidasi & Karatzoglou 2018, eq. 8), a mean over T.

        sum_j s_j (sigma(r_j - r_i) + sigma(r_j ** 2)),    s = softmax of the negatives' scores

    Args:
        target_logits: ``[T]``, r_i.
        negative_logits: ``[T, N]``, r_j; -inf leaves a negative out.
    """
    share = negative_logits.softmax(dim=1)
    scores = negative_logits.masked_fill(~negative_logits.isfinite(), 0.0)
    return (share * ((scores - target_logits[:, None]).sigmoid() + scores.square().sigmoid())).sum(dim=1).mean()
