"""The loop: it learns, repeats itself, stops early, and leaves nothing behind."""

import csv
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import learning  # noqa: E402

from edgeml.errors import PassError  # noqa: E402
from edgeml.training import loop  # noqa: E402
from edgeml.training.loop import LoopOptions, train  # noqa: E402
from edgeml.training.losses import task_loss  # noqa: E402


def run(task, module=None, loss=None, **how):
    module = module or learning.net()
    how.setdefault("checkpoint_s", 3600.0)
    options = learning.options(
        **{key: how.pop(key) for key in [*how] if key in vars(learning.options())}
    )
    loss = loss or task_loss({"loss": ""}, task)
    return module, train(module, ["x"], task, options, loss, **how)


class Spoken:
    """Progress that remembers."""

    def __init__(self):
        self.stages, self.steps, self.results = [], [], []

    def stage(self, text):
        self.stages.append(text)

    def step(self, done, total):
        self.steps.append((done, total))

    def result(self, text):
        self.results.append(text)


def test_it_learns_and_says_how_well():
    task = learning.task()
    module, trained = run(task, epochs=12)
    assert trained.score > trained.score_before + 0.3
    assert not module.training
    with torch.no_grad():
        outputs = module(torch.from_numpy(task.holdout.inputs["x"]))
    assert task.score({"output": outputs.numpy()}, task.holdout.labels) == trained.score
    assert all(one.grad is None for one in module.parameters())
    assert trained.facts() == {
        "epochs_run": 12, "best_epoch": trained.best_epoch, "steps": 60,
        "batch_run": 16, "holdout_before": trained.score_before,
        "holdout_after": trained.score, "trained_on": "cpu",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (
        learning.fingerprint(run(learning.task(seed=seed), augment=learning.noisy)[0])
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_two_threads_repeat_themselves_too():
    torch.set_num_threads(2)
    first, again = (learning.fingerprint(run(learning.task())[0]) for _ in range(2))
    assert first == again


def test_nothing_global_changes():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    run(learning.task(), augment=learning.noisy)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def scored(scores):
    """A score that is what the list says, one after the other."""
    said = iter(scores)
    return lambda outputs, labels: next(said)


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.9], 2, 3, 1),
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.3], 2, 5, 3),
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1], 3, 3, 0),
        ([0.1, 0.3, 0.2, 0.3, 0.2, 0.2], 0, 5, 3),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 2, 2, 2),
    ],
)
def test_early_stop_and_the_best_weights(scores, patience, epochs, best):
    kept = {}

    def remember(epoch=0, steps=5):
        made[0] += 1
        if made[0] % steps == 0:
            kept[made[0] // steps] = learning.fingerprint(module)

    made, module = [0], learning.net()
    task = replace(learning.task(), score=scored(scores))
    kept[0] = learning.fingerprint(module)
    _, trained = run(task, module, epochs=5, patience=patience, after_step=remember)
    assert (trained.epochs, trained.best_epoch) == (epochs, best)
    assert trained.score == max(scores[: epochs + 1])
    assert learning.fingerprint(module) == kept[best]


def test_no_epochs_train_nothing():
    module, trained = run(learning.task(), epochs=0)
    assert learning.fingerprint(module) == learning.fingerprint(learning.net())
    assert trained.steps == 0
    assert trained.score == trained.score_before


@pytest.mark.parametrize(
    ("given", "wanted", "steps"), [(16, 16, 5), (17, 16, 5), (33, 32, 2), (500, 80, 1)]
)
def test_batches_are_even_and_the_ragged_last_is_dropped(given, wanted, steps):
    sizes = []

    def augment(inputs, generator):
        sizes.append(len(inputs["x"]))
        return inputs

    _, trained = run(learning.task(), epochs=2, batch=given, augment=augment)
    assert set(sizes) == {wanted}
    assert len(sizes) == trained.steps == 2 * steps
    assert trained.batch == wanted


def test_no_tensor_is_channels_last():
    seen = []
    module = learning.net().to(memory_format=torch.channels_last)
    module.conv.register_forward_hook(
        lambda part, given, _: seen.append(
            given[0].is_contiguous() and part.weight.is_contiguous()
        )
    )

    def augment(inputs, generator):
        return {"x": inputs["x"].to(memory_format=torch.channels_last)}

    run(learning.task(), module, epochs=1, augment=augment)
    assert seen and all(seen)


def test_after_step_can_keep_weights_at_zero():
    module = learning.net()

    def mask():
        with torch.no_grad():
            module.conv.weight[0] = 0

    run(learning.task(), module, after_step=mask)
    assert not module.conv.weight[0].any()
    assert module.conv.weight[1].any()


def test_frozen_parameters_stay():
    module = learning.net()
    module.conv.requires_grad_(False)
    before = module.conv.weight.clone()
    run(learning.task(), module)
    assert torch.equal(module.conv.weight, before)


def test_a_loss_that_is_a_module_learns_too(tmp_path):
    class Regressed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.map = torch.nn.Linear(3, 2)

        def forward(self, outputs, batch):
            wanted = torch.nn.functional.one_hot(batch.labels % 2, 2).float()
            return torch.nn.functional.mse_loss(self.map(outputs["output"]), wanted)

    with torch.random.fork_rng(devices=[]):
        loss, fresh = Regressed(), Regressed()
    run(learning.task(), loss=loss)
    assert not torch.equal(loss.map.weight, fresh.map.weight)

    class Stop(BaseException):
        pass

    def stop():
        steps.append(1)
        if len(steps) == 8:
            raise Stop

    steps, task = [], learning.task(tmp_path)
    with torch.random.fork_rng(devices=[]), pytest.raises(Stop):
        run(task, loss=Regressed(), after_step=stop, checkpoint_s=0.0)
    with torch.random.fork_rng(devices=[]):
        resumed = Regressed()
    run(task, loss=resumed)
    assert torch.equal(resumed.map.weight, loss.map.weight)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"learning_rate": 1e30}, r"became .* in epoch 1 .*lower learning_rate"),
        ({"loss": lambda o, b: o["output"].sum() * float("nan")},
         r"the loss became nan in epoch 1 \(step 1\); lower learning_rate"),
    ],
)  # fmt: skip
def test_weights_that_are_not_finite_are_an_error(tmp_path, how, message):
    with pytest.raises(PassError, match=message):
        run(learning.task(tmp_path), optimizer="sgd", **how)
    assert not (tmp_path / "train" / "checkpoint").exists()


def test_a_metric_that_is_nan_is_an_error():
    task = replace(learning.task(), score=scored([float("nan")]))
    with pytest.raises(PassError, match="the metric is NaN on 9 held-out samples"):
        run(task)


def test_nothing_to_train_is_an_error():
    module = learning.net().requires_grad_(False)
    with pytest.raises(PassError, match="no parameter that requires a gradient"):
        run(learning.task(), module)


def test_an_infinite_buffer_may_be_meant():
    module = learning.net()
    module.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    run(learning.task(), module, epochs=1)


def test_the_log_holds_every_epoch(tmp_path):
    _, trained = run(learning.task(tmp_path))
    with (tmp_path / "train" / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [int(row["step"]) for row in rows] == [5, 10, 15]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert max(float(row["score"]) for row in rows) == trained.score
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_progress_names_epoch_loss_and_score(monkeypatch):
    monkeypatch.setattr(loop, "SAID_EVERY_S", -1.0)
    spoken = Spoken()
    run(learning.task(progress=spoken), name="fine-tune")
    assert spoken.stages[0].startswith("fine-tune: epoch 1 of 3, loss ")
    assert ", held out 0." in spoken.stages[0]
    assert spoken.steps[-1] == (15, 15)
    assert spoken.results[-1].startswith("fine-tune: held out 0.5556 → ")


def test_another_training_in_the_same_folder_begins_anew(tmp_path):
    alone, _ = run(learning.task(), learning_rate=0.01)
    run(learning.task(tmp_path))
    after, _ = run(learning.task(tmp_path), learning_rate=0.01)
    assert learning.fingerprint(after) == learning.fingerprint(alone)


def test_options_come_from_the_parameters_of_any_pass():
    from edgeml.recipes.verbs import TRAINING, defaults

    for verb in (*TRAINING, "prune"):
        options = LoopOptions.of(defaults(verb))
        assert vars(options).items() <= defaults(verb).items()


def test_work_is_made_where_there_is_none(tmp_path: Path):
    run(learning.task(tmp_path / "a" / "b"), name="round-1", epochs=1)
    found = {path.name for path in (tmp_path / "a" / "b" / "round-1").iterdir()}
    assert {"checkpoint", "log.csv"} <= found
