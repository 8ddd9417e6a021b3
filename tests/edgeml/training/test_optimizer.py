"""Learning rates, decoupled decay, and steps that torch's own optimizers would take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgeml.training.optimizer import Optimizer, rate_at  # noqa: E402


@given(steps=st.integers(1, 500), schedule=st.sampled_from(["cosine", "constant"]))
def test_rates_warm_up_and_never_leave_their_bounds(steps, schedule):
    rates = [rate_at(step, steps, 0.1, schedule) for step in range(steps)]
    warm = steps // 20
    assert all(0 < rate <= 0.1 for rate in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm] == 0.1
    after = rates[warm:]
    assert after == sorted(after, reverse=True)
    if schedule == "constant":
        assert set(after) == {0.1}
    elif steps >= 20:
        assert rates[-1] < 0.01


def weights():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(3))]


def stepped(make, rate=0.1, count=3):
    found = weights()
    with torch.random.fork_rng(devices=[]):
        step = make(found)
        for _ in range(count):
            step(sum((one**3).sum() for one in found), rate)
    return [one.detach() for one in found]


@pytest.mark.parametrize(("kind", "decay"), [("adamw", 0.1), ("sgd", 0.0)])
def test_it_steps_as_torch_does(kind, decay):
    def ours(found):
        return Optimizer(found, kind, decay, "cpu").step

    def theirs(found):
        groups = [
            {"params": found[:1], "weight_decay": decay},
            {"params": found[1:], "weight_decay": 0.0},
        ]
        inner = (
            torch.optim.AdamW(groups, lr=0.1)
            if kind == "adamw"
            else torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        )

        def step(loss, rate):
            inner.zero_grad()
            loss.backward()
            inner.step()

        return step

    for mine, wanted in zip(stepped(ours), stepped(theirs), strict=True):
        assert torch.equal(mine, wanted)


def test_decay_of_sgd_is_decoupled_and_spares_biases():
    found = weights()
    before = [one.detach().clone() for one in found]
    optimizer = Optimizer(found, "sgd", 0.1, "cpu")
    optimizer.step(sum(one.sum() for one in found) * 0.0, 0.5)
    assert torch.allclose(found[0], before[0] * (1 - 0.5 * 0.1))
    assert torch.equal(found[1], before[1])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_restored_optimizer_goes_on(kind):
    whole = stepped(lambda found: Optimizer(found, kind, 0.1, "cpu").step, count=4)

    def broken(found):
        optimizers = [Optimizer(found, kind, 0.1, "cpu")]

        def step(loss, rate):
            optimizers[-1].step(loss, rate)
            fresh = Optimizer(found, kind, 0.1, "cpu")
            fresh.restore(optimizers[-1].state())
            optimizers.append(fresh)

        return step

    for one, wanted in zip(stepped(broken, count=4), whole, strict=True):
        assert torch.equal(one, wanted)


def test_on_a_cpu_nothing_is_cast():
    optimizer = Optimizer(weights(), "adamw", 0.0, "cpu")
    with optimizer.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
