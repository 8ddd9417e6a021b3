"""Seeds and settings: the same within, as before afterwards."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeml.training.repeatable import repeatable, seed_everything  # noqa: E402


def draws():
    return random.random(), np.random.rand(), float(torch.rand(()))


def test_a_step_draws_what_its_seed_and_number_say():
    def drawn(seed, step):
        seed_everything(seed, step)
        return draws()

    with repeatable():
        assert drawn(1, 2) == drawn(1, 2)
        every = [*drawn(1, 1), *drawn(1, 2), *drawn(2, 1), *drawn(2, 2)]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_settings_and_generators_are_put_back(ends):
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    wanted = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    try:
        with repeatable():
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            seed_everything(3, 4)
            draws()
            if ends == "badly":
                raise KeyError
    except KeyError:
        assert ends == "badly"
    finally:
        strict = torch.are_deterministic_algorithms_enabled()
        lenient = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(False)
    assert strict and not lenient
    assert draws() == wanted
