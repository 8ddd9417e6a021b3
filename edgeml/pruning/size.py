"""How large a module is, and what one run of it costs."""

from collections.abc import Sequence
from typing import Any

from ..intake.modules import torch_here
from .attention import unfused


def parameters_of(module: Any) -> int:
    """Numbers that are learned."""
    return sum(one.numel() for one in module.parameters())


def macs_of(module: Any, example: Sequence[Any]) -> int:
    """Multiplications of convolutions and matrix products in one run of ``example``."""
    torch = torch_here()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the counter knows no fused attention, neither torch's encoder layers' nor the
    # function's
    with (
        torch.no_grad(),
        unfused(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        module(*example)
    return int(counter.get_total_flops()) // 2
