"""Attention of packed tokens on a GPU, without padding."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.models.grouping import Grouping

_WIDEST = 256  # head that torch's fused kernels take


@cache
def _has_fused_kernels(device: torch.device) -> bool:
    """Whether torch has fused attention for histories of varying length on a device: NVIDIA GPUs from Ampere on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def can_attend_packed(query: Tensor, grouping: Grouping, num_heads: int) -> bool:
    """Whether :func:`attend_packed` can be used for queries ``[T, heads * d]``.

    The kernels need d to be a multiple of 8, and a token in every history. Elsewhere torch would attend to the
    histories one by one.
    """
    width = query.shape[1] // num_heads
    return (
        _has_fused_kernels(query.device)
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and width % 8 == 0
        and width <= _WIDEST
        and grouping.shortest > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def attend_packed(query: Tensor, key_value: Tensor, grouping: Grouping, num_heads: int, dropout: float) -> Tensor:
    """Scaled dot-product attention of packed tokens: each query sees the tokens that ``grouping`` says.

    ``scaled_dot_product_attention`` on jagged tensors runs FlashAttention-2 (Dao 2023) in half precision, and
    memory-efficient attention (Rabe & Staats 2021) in float32. The longest and shortest lengths come from the host, so
    nothing waits for the GPU.

    Args:
        query: ``[T, heads * d]``.
        key_value: ``[T, 2 * heads * d]``, the keys, then the values.
        grouping: the histories, and whether attention is causal.
        num_heads: number of heads.
        dropout: probability with which a weight is dropped.

    Returns:
        ``[T, heads * d]``.
    """

    def jagged(x: Tensor) -> Tensor:
        values = x.unflatten(1, (num_heads, -1))
        nested = torch.nested.nested_tensor_from_jagged(
            values, grouping.offsets, min_seqlen=grouping.shortest, max_seqlen=grouping.longest
        )
        return nested.transpose(1, 2)

    key, value = key_value.chunk(2, dim=1)
    mixed = F.scaled_dot_product_attention(
        jagged(query), jagged(key), jagged(value), dropout_p=dropout, is_causal=grouping.causal
    )
    return mixed.transpose(1, 2).values().flatten(1)
