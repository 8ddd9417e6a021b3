"""The same seed gives the same bytes, and nothing global is left changed.

Everything random in a step (dropout, a hook's own draws) is seeded from the run's seed
and the step's number, so a resumed run draws what an undisturbed one would have drawn.
"""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..intake.modules import torch_here
from .batches import step_seed


@contextmanager
def repeatable() -> Iterator[None]:
    """Have deterministic kernels within; put generators and settings back at the end.

    Operators that have no deterministic kernel (some, on a GPU) run all the same.
    """
    torch = torch_here()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    kernels = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(kernels, warn_only=lenient)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


def seed_everything(seed: int, step: int) -> None:
    """Seed torch, numpy and ``random`` for one step."""
    number = step_seed(seed, step)
    torch_here().manual_seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    random.seed(number)
