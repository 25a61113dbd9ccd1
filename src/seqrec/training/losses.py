"""Training losses: plain functions of logits, for T tokens and N negatives."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec import kernels

_CELLS = 2**22  # logits in memory at once on the CPU: 16 MiB
_CELLS_OF_A_GPU = 2**26  # and on a GPU: 256 MiB; its matrix products are fast only if they are large


def binary_cross_entropy(target_logits: Tensor, negative_logits: Tensor, target_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of the target against its negatives (SASRec, section III-E), a mean over T.

    With :func:`gbce_weight` this is gBCE without its constant factor 1 / (N + 1).

    Args:
        target_logits: ``[T]``.
        negative_logits: ``[T, N]``; -inf leaves a negative out. The terms of the negatives are summed, so N = 1 gives
            the loss of the paper.
        target_weight: weight of the target's term.
    """
    return (target_weight * F.softplus(-target_logits) + F.softplus(negative_logits).sum(dim=1)).mean()


def binary_cross_entropy_of(hidden: Tensor, vectors: Tensor) -> Tensor:
    """:func:`binary_cross_entropy` from hidden states and the vectors of each token's own candidates, in one pass.

    Args:
        hidden: ``[T, D]``.
        vectors: ``[T, 1 + N, D]``: the target's vector, then those of the negatives.
    """
    if kernels.usable(hidden, vectors):
        loss: Tensor = _Backward.apply(kernels.binary_loss, hidden, vectors)
        return loss
    logits = torch.einsum("td,tcd->tc", hidden, vectors)
    return binary_cross_entropy(logits[:, 0], logits[:, 1:])


def gbce_weight(negatives: int, num_items: int, calibration: float) -> float:
    """The power beta of the target's probability in gBCE, which is the weight of the target's term.

    If only N of I items are drawn as negatives, training shows too few negatives, and binary cross-entropy learns
    probabilities that are too high. The power corrects this (Petrov & Macdonald 2023, "gSASRec: Reducing Overconfidence
    in Sequential Recommendation Trained with Negative Sampling"):

        alpha = N / (I - 1),    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)

    Args:
        negatives: N, number of negatives per target.
        num_items: I, number of items in the catalogue.
        calibration: t, from 0 (plain binary cross-entropy, beta = 1) to 1 (calibrated probabilities, beta = alpha).
    """
    alpha = min(negatives / max(num_items - 1, 1), 1.0)
    return 1.0 - calibration * (1.0 - alpha)


def sampled_softmax(
    target_logits: Tensor,
    negative_logits: Tensor,
    target_log_probability: Tensor | float | None = None,
    negative_log_probability: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of the target among itself and N sampled negatives, a mean over T.

    The log-probabilities, if given, are subtracted from the logits (logQ correction: Bengio & Senecal 2008; Jean et al.
    2015, eq. 8 to 11). Suppose that a sampler draws N negatives with probabilities q, and that -inf leaves out those
    equal to the target t. The correction is then ``log q_j`` for the negatives and ``-log N`` for the target:

        loss = log(1 + exp(-s_t) * (1 / N) * sum over the drawn j other than t of exp(s_j) / q_j)

    The sum divided by N has the expectation ``sum over j other than t of exp(s_j)``, over all items that can be drawn.
    So the loss and its gradient estimate those of the full softmax, and more precisely for a larger N. If -inf leaves
    out other items too, the estimate is that of a softmax without them.

    Adding one constant to all log-probabilities changes nothing. So a uniform sampler of I items, with or without
    replacement, needs ``log(I / N)`` for the target and 0 for the negatives. Without the target's term the loss still
    ranks, but it treats the N negatives as the whole catalogue, as if the target's logit were higher by ``log(I / N)``.

    Args:
        target_logits: ``[T]``.
        negative_logits: ``[T, N]``; -inf leaves a negative out.
        target_log_probability: ``[T]``, or one number for all targets. By default their logits stay as they are.
        negative_log_probability: ``[N]``. By default the negatives' logits stay as they are.
    """
    if target_log_probability is not None:
        target_logits = target_logits - target_log_probability
    if negative_log_probability is not None:
        negative_logits = negative_logits - negative_log_probability
    # Joining target and negatives in one tensor would copy all logits.
    return F.softplus(negative_logits.logsumexp(dim=1) - target_logits).mean()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy over the whole catalogue, a mean over T.

    Args:
        logits: ``[T, I + 1]``; column 0, the padding, is left out.
        targets: ``int64[T]``, items from 1.
    """
    return F.cross_entropy(logits[:, 1:], targets - 1)


def bpr_max(target_logits: Tensor, negative_logits: Tensor, penalty: float = 1.0) -> Tensor:
    """BPR-max with score regularisation (Hidasi & Karatzoglou 2018, section 3.3; preprint's eq. 16), a mean over T.

        -log sum_j s_j sigma(r_i - r_j) + penalty * sum_j s_j r_j ** 2,    s = softmax of the negatives' scores

    Args:
        target_logits: ``[T]``, r_i.
        negative_logits: ``[T, N]``, r_j; -inf leaves a negative out. A token without any costs nothing.
        penalty: weight of the regularisation.
    """
    scores, log_share, some = _shares(negative_logits)
    log_ranked = F.logsigmoid(target_logits[:, None] - scores)
    ranked = -(log_share + log_ranked).logsumexp(dim=1)
    loss = ranked + penalty * (log_share.exp() * scores.square()).sum(dim=1)
    return loss.where(some, 0.0).mean()


def top1_max(target_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """TOP1-max (Hidasi & Karatzoglou 2018, section 3.3; preprint's eq. 9), a mean over T.

        sum_j s_j (sigma(r_j - r_i) + sigma(r_j ** 2)),    s = softmax of the negatives' scores

    Args:
        target_logits: ``[T]``, r_i.
        negative_logits: ``[T, N]``, r_j; -inf leaves a negative out. A token without any costs nothing.
    """
    scores, log_share, some = _shares(negative_logits)
    ranked = (scores - target_logits[:, None]).sigmoid() + scores.square().sigmoid()
    return (log_share.exp() * ranked).sum(dim=1).where(some, 0.0).mean()


def _shares(negative_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (0 for negatives left out), the logarithm of their softmax, and whether each row has any negative."""
    left_out = negative_logits == -torch.inf
    scores = negative_logits.masked_fill(left_out, 0.0)
    some = ~left_out.all(dim=1)
    # A row without negatives gets equal shares, which are finite. Its loss is not used.
    shares = negative_logits.masked_fill(~some[:, None], 0.0).log_softmax(dim=1)
    return scores, shares, some


def blocked_sampled_softmax(
    hidden: Tensor,
    vectors: Tensor,
    target_logits: Tensor,
    left_out: tuple[Tensor, Tensor],
    target_log_probability: Tensor | float | None = None,
    negative_log_probability: Tensor | None = None,
    block: int | None = None,
    host_tokens: Tensor | None = None,
) -> Tensor:
    """:func:`sampled_softmax` from hidden states and the negatives' vectors, without all logits in memory.

    Each block of tokens runs forward and immediately backward: the loss is a mean, so the gradient of a logit is known
    as soon as its row is. On the CPU, the logits of a block stay in the cache, which accounts for most of the speed.
    Memory does not grow with T * N.

    Args:
        hidden: ``[T, D]``.
        vectors: ``[N, D]``, the vectors of the negatives.
        target_logits: ``[T]``.
        left_out: pairs (token, negative) that do not count, as two ``int64`` tensors with tokens in ascending order.
        target_log_probability: ``[T]``, or one number for all, subtracted from ``target_logits``.
        negative_log_probability: ``[N]``, subtracted from the negatives' logits.
        block: number of tokens per block if the compiled loops do not run. By default it depends on the number of
            negatives and the device.
        host_tokens: the tokens of ``left_out`` on the CPU. If those are on a GPU, cutting them into blocks would
            otherwise wait for it.
    """
    if target_log_probability is not None:
        target_logits = target_logits - target_log_probability
    loss: Tensor = _BlockedSampledSoftmax.apply(
        hidden, vectors, target_logits, *left_out, negative_log_probability, block, host_tokens
    )
    return loss


def blocked_cross_entropy(hidden: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """:func:`cross_entropy` from hidden states and all items' vectors, without all logits in memory.

    This is :func:`blocked_sampled_softmax` with all items except the target as negatives.

    Args:
        hidden: ``[T, D]``.
        vectors: ``[I + 1, D]``; row 0, the padding, is left out.
        targets: ``int64[T]``, items from 1.
    """
    if kernels.usable(hidden, vectors):
        loss: Tensor = _Backward.apply(lambda h, v: kernels.cross_entropy(h, v, targets), hidden, vectors)
        return loss
    tokens, host_tokens = (torch.arange(len(targets), device=device) for device in (targets.device, "cpu"))
    target_logits = (hidden * vectors[targets]).sum(dim=1)
    return blocked_sampled_softmax(hidden, vectors[1:], target_logits, (tokens, targets - 1), host_tokens=host_tokens)


class _Backward(torch.autograd.Function):
    """The mean of losses, for a function that returns the losses and the gradients of their mean together."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
        losses, *gradients = function(*inputs)
        ctx.save_for_backward(*gradients)
        return losses.mean().to(inputs[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_scaled(ctx.saved_tensors, gradients[0])


def _scaled(gradients: tuple[Tensor, ...], by: Tensor) -> tuple[Tensor, ...]:
    # The upstream gradient is usually 1, and testing for that on a GPU would force a synchronisation.
    one = by.device.type == "cpu" and by == 1
    return gradients if one else tuple(gradient * by for gradient in gradients)


class _BlockedSampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        vectors: Tensor,
        target_logits: Tensor,
        tokens: Tensor,
        negatives: Tensor,
        log_probability: Tensor | None,
        block: int | None,
        host_tokens: Tensor | None,
    ) -> Tensor:
        if log_probability is not None:
            log_probability = log_probability.to(torch.promote_types(hidden.dtype, torch.float32))
        if kernels.usable(hidden, vectors, target_logits):
            found = kernels.softmax_loss(hidden, vectors, target_logits, (tokens, negatives), log_probability)
        else:
            pairs = tokens, negatives
            found = _softmax_loss(hidden, vectors, target_logits, pairs, log_probability, block, host_tokens)
        ctx.save_for_backward(*found[1:])
        return found[0].mean().to(torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx.saved_tensors, gradients[0]), None, None, None, None, None


def _softmax_loss(
    hidden: Tensor,
    vectors: Tensor,
    targets: Tensor,
    left_out: tuple[Tensor, Tensor],
    log_probability: Tensor | None,
    block: int | None,
    host_tokens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The equivalent of ``kernels.softmax_loss`` in torch, on any device.

    Under autocast, the factors of matrix products have its type, and sums and results are float32.
    """
    count, (tokens, negatives) = len(hidden), left_out
    block = block or _block(len(vectors), hidden.device)
    kinds = [x.dtype for x in (hidden, vectors, targets)]
    hidden, vectors, targets = (_wide(x) for x in (hidden, vectors, targets))
    narrow = _autocast_kind(hidden) or hidden.dtype
    by_hidden, by_vectors, by_targets = torch.empty_like(hidden), torch.zeros_like(vectors), torch.empty_like(targets)
    kind = torch.float64 if hidden.device.type == "cpu" else hidden.dtype  # not every GPU has float64
    losses = torch.empty(count, dtype=kind, device=hidden.device)
    memory = hidden.new_empty(min(block, count), len(vectors)) if narrow == hidden.dtype else None
    factor = vectors.to(narrow)
    host_tokens = tokens.cpu() if host_tokens is None else host_tokens
    cuts = torch.searchsorted(host_tokens, torch.arange(0, count + block, block)).tolist()
    for number, start in enumerate(range(0, count, block)):
        rows = slice(start, min(start + block, count))
        logits = _product(hidden[rows].to(narrow), factor.T, None if memory is None else memory[: rows.stop - start])
        mine = slice(cuts[number], cuts[number + 1])
        logits.index_put_((tokens[mine] - start, negatives[mine]), logits.new_full((), -torch.inf))
        if log_probability is not None:
            logits -= log_probability
        # If all negatives of a row are left out, its maximum is -inf. Replacing it by 0 gives a sum of 0.
        highest = logits.amax(dim=1).nan_to_num_(neginf=0.0)
        exponents = logits.sub_(highest[:, None]).exp_()
        sums = exponents.sum(dim=1)
        excess = sums.log() + highest - targets[rows]
        losses[rows] = F.softplus(excess).to(kind)
        share = excess.sigmoid() / count
        by_targets[rows] = -share
        # Scaling the rows after the products, and not the logits before, costs almost nothing.
        factors = (share / sums.clamp_min(1e-30))[:, None]
        exponents = exponents.to(narrow)
        _product(exponents, factor, by_hidden[rows]).mul_(factors)
        scaled = (hidden[rows] * factors).to(narrow)
        if narrow == by_vectors.dtype:
            by_vectors.addmm_(exponents.T, scaled)
        else:
            by_vectors += _product(exponents.T, scaled)
    return losses, by_hidden.to(kinds[0]), by_vectors.to(kinds[1]), by_targets.to(kinds[2])


def _block(negatives: int, device: torch.device) -> int:
    """Number of tokens whose logits are in memory at once: on the CPU in its cache, on a GPU within a bound."""
    if device.type == "cpu":
        return min(max(_CELLS // max(negatives, 1), 16), 256)
    return max(_CELLS_OF_A_GPU // max(negatives, 1), 16)


def _wide(x: Tensor) -> Tensor:
    """Half precision converted to float32; wider types unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _autocast_kind(x: Tensor) -> torch.dtype | None:
    """The type of matrix products under autocast, or None outside it."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if available and x.dtype is torch.float32 else None


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b``, summed in float32 (or wider), written to ``out`` if it is given."""
    if out is not None and a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    # Torch's products on the CPU sum in float32 too, but round the result.
    product = torch.mm(a, b).float() if a.device.type == "cpu" else torch.mm(a, b, out_dtype=torch.float32)
    return product if out is None else out.copy_(product)
