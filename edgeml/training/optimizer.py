"""One step of the weights: optimizer, learning rate, decay and precision.

The rules it keeps:

1. The learning rate is a function of the step alone: a linear warm-up over the first
   twentieth of all steps, then constant, or a cosine down to zero.
2. Weight decay is decoupled from the gradient (Loshchilov and Hutter 2019), for
   ``sgd`` too, and spares biases, norms and other tensors of one dimension.
3. On a CPU everything is float32. On a GPU the forward runs in bfloat16 where the GPU
   has it, else in float16 with a scaled loss.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

from ..intake.modules import torch_here

WARM_UP_SHARE = 0.05
MOMENTUM = 0.9


def rate_at(
    step: int, steps: int, highest: float, schedule: Literal["cosine", "constant"]
) -> float:
    """The learning rate of a step (from 0) of ``steps``.

    >>> [rate_at(step, 4, 1.0, "constant") for step in range(4)]
    [1.0, 1.0, 1.0, 1.0]
    >>> [round(rate_at(step, 5, 1.0, "cosine"), 2) for step in range(5)]
    [1.0, 0.9, 0.65, 0.35, 0.1]
    """
    warm = int(steps * WARM_UP_SHARE)
    if step < warm:
        return highest * (step + 1) / (warm + 1)
    if schedule == "constant":
        return highest
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


class Optimizer:
    """Takes steps on parameters that require gradients."""

    def __init__(
        self,
        parameters: Iterable[Any],
        kind: Literal["adamw", "sgd"],
        weight_decay: float,
        device: str,
    ) -> None:
        torch = torch_here()
        trained = [one for one in parameters if one.requires_grad]
        self._decayed = [one for one in trained if one.ndim > 1]
        self._decay = weight_decay
        groups = [
            {"params": self._decayed, "weight_decay": weight_decay},
            {
                "params": [one for one in trained if one.ndim <= 1],
                "weight_decay": 0.0,
            },
        ]
        self._sgd = kind == "sgd"
        if self._sgd:
            for group in groups:
                group["weight_decay"] = 0.0
            self._inner = torch.optim.SGD(
                groups, lr=0.0, momentum=MOMENTUM, nesterov=True
            )
        else:
            self._inner = torch.optim.AdamW(groups, lr=0.0)
        self._device = device
        self._dtype = torch.float32
        if device == "cuda":
            whole = torch.cuda.is_bf16_supported(including_emulation=False)
            self._dtype = torch.bfloat16 if whole else torch.float16
        self._scaler = torch.amp.GradScaler(
            device, enabled=self._dtype == torch.float16
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it the forward runs in the GPU's short floats."""
        torch = torch_here()
        cast: AbstractContextManager[Any] = torch.autocast(
            self._device, self._dtype, enabled=self._dtype != torch.float32
        )
        return cast

    def step(self, loss: Any, rate: float) -> None:
        """Move the parameters against the gradient of ``loss``."""
        for group in self._inner.param_groups:
            group["lr"] = rate
        self._inner.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if self._sgd and self._decay:
            with torch_here().no_grad():
                for one in self._decayed:
                    one.mul_(1 - rate * self._decay)
        self._scaler.step(self._inner)
        self._scaler.update()

    def forget_gradients(self) -> None:
        """Free them; a trained module carries none."""
        self._inner.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a resumed optimizer needs."""
        return {
            "inner": self._inner.state_dict(), "scaler": self._scaler.state_dict()
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._inner.load_state_dict(state["inner"])
        self._scaler.load_state_dict(state["scaler"])
