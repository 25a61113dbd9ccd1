"""A map of vectors in two dimensions, in which neighbours stay neighbours."""

import torch
from torch import Tensor

_STEPS, _EXAGGERATED = 300, 100  # steps in all, and those in which attraction counts more
_TINY = 1e-12


@torch.inference_mode()
def neighbour_map(vectors: Tensor, perplexity: float = 30.0) -> Tensor:
    """Places of unit vectors in the plane by t-SNE (van der Maaten & Hinton 2008), exact and without random numbers.

    It begins with the two main components. Distances between far groups mean little: only what is near is kept near.
    The cost grows with the square of the number of vectors.

    Args:
        vectors: ``float32[M, D]`` of length 1, at least 3.
        perplexity: effective number of neighbours; at most a third of the vectors.

    Returns:
        ``float32[M, 2]``, with the mean 0.
    """
    count = len(vectors)
    centred = vectors - vectors.mean(dim=0)
    # The products of 0 directions are rounding errors, so their signs are fixed here.
    _, axes = torch.linalg.eigh((centred.T @ centred).double())
    axes = axes[:, -2:].flip(1).float() if axes.shape[1] > 1 else torch.cat([axes, axes], dim=1).float()
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))
    places = centred @ axes
    places = 1e-2 * places / places[:, 0].std().clamp(min=_TINY)
    wanted = _affinities((2 - 2 * vectors @ vectors.T).clamp(min=0), min(perplexity, (count - 1) / 3))
    moved, gains = torch.zeros_like(places), torch.ones_like(places)
    rate = max(count / 12, 20.0)
    for step in range(_STEPS):
        factor, momentum = (12.0, 0.5) if step < _EXAGGERATED else (1.0, 0.8)
        near = 1 / (1 + torch.cdist(places, places, compute_mode="use_mm_for_euclid_dist").square())
        near.fill_diagonal_(0)
        pull = (factor * wanted - near / near.sum().clamp(min=_TINY)) * near
        gradient = 4 * (pull.sum(dim=1, keepdim=True) * places - pull @ places)
        gains = torch.where((gradient > 0) == (moved > 0), gains * 0.8, gains + 0.2).clamp_(min=0.01)
        moved = momentum * moved - rate * gains * gradient
        places = places + moved
        places = places - places.mean(dim=0)
    return places


def _affinities(distances: Tensor, perplexity: float) -> Tensor:
    """Joint probabilities of neighbours, ``float32[M, M]``, from squared distances; each row has the perplexity."""
    count = len(distances)
    low, high = torch.zeros(count, 1), torch.full((count, 1), torch.inf)
    precision = 1 / distances.mean(dim=1, keepdim=True).clamp(min=_TINY)
    nearest = distances.clone().fill_diagonal_(torch.inf)
    nearest -= nearest.min(dim=1, keepdim=True).values  # the same shares, without underflow
    shares = nearest
    for _ in range(40):  # halves the range of the precision
        shares = (-nearest * precision).exp()
        shares = shares / shares.sum(dim=1, keepdim=True)
        entropy = -(shares * shares.clamp(min=_TINY).log()).sum(dim=1, keepdim=True)
        too_wide = entropy > torch.tensor(perplexity).log()
        low, high = torch.where(too_wide, precision, low), torch.where(too_wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    return (shares + shares.T) / (2 * count)
