"""The pass ``train``: what it tells, keeps and refuses."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import learning  # noqa: E402

from device_agent.contract.tensors import TensorSpec  # noqa: E402
from edgeml.errors import PassError, RecipeError  # noqa: E402
from edgeml.model import Model, Step  # noqa: E402
from edgeml.passes import load_pass  # noqa: E402
from edgeml.passes.base import Context, digest  # noqa: E402

SMALL = {"epochs": 4, "batch": 16, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model() -> Model:
    return Model(
        "module",
        learning.net().eval(),
        (TensorSpec(name="x", datatype="FP32", shape=(1, 1, 6, 6)),),
        (TensorSpec(name="output", datatype="FP32", shape=(1, 3)),),
        (Step("load", {"source": "learning:net"}),),
    )


def test_it_trains_a_copy_and_tells_what_that_gave(tmp_path):
    before = model()
    kept = digest(before)
    after = load_pass("train", SMALL)(before, Context(task=learning.task(tmp_path)))
    assert digest(before) == kept != digest(after)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert not after.payload.training
    told = after.lineage[-1].parameters
    assert told["epochs"] == told["epochs_run"] == 4
    assert told["steps"] == 20
    assert told["holdout_after"] > told["holdout_before"]
    assert told["best_epoch"] in (1, 2, 3, 4)
    assert (tmp_path / "train" / "log.csv").is_file()


def test_the_same_seed_gives_the_same_model_twice():
    def trained(seed):
        context = Context(task=learning.task(seed=seed))
        return load_pass("train", SMALL)(model(), context)

    first, again, other = trained(1), trained(1), trained(2)
    assert digest(first) == digest(again) != digest(other)
    assert first.lineage == again.lineage


def test_it_is_never_worse_on_held_out_samples_than_what_came_in():
    good = load_pass("train", {**SMALL, "epochs": 12})
    first = good(model(), Context(task=learning.task()))
    ruin = load_pass("train", {**SMALL, "learning_rate": 10.0, "optimizer": "sgd"})
    task = replace(learning.task(), holdout=learning.task().train)
    try:
        after = ruin(first, Context(task=task))
    except PassError as error:
        assert "lower learning_rate" in str(error)
    else:
        told = after.lineage[-1].parameters
        assert told["holdout_after"] >= told["holdout_before"]


def test_own_hooks_are_found_in_the_recipes_folder(tmp_path):
    (tmp_path / "own_training.py").write_text(
        "import torch\n"
        "def loss(outputs, labels):\n"
        "    open(__file__ + '.ran', 'w').close()\n"
        "    return torch.nn.functional.multi_margin_loss(outputs['output'], labels)\n"
        "def augment(inputs, generator):\n"
        "    raise ZeroDivisionError('by augment')\n"
    )
    task = replace(learning.task(), folder=tmp_path)
    load_pass("train", {**SMALL, "loss": "own_training:loss"})(
        model(), Context(task=task)
    )
    assert (tmp_path / "own_training.py.ran").exists()
    broken = load_pass("train", {**SMALL, "augment": "own_training:augment"})
    with pytest.raises(
        PassError,
        match=r"pass 'train' failed: augment own_training:augment raised "
        r"ZeroDivisionError: by augment \(ran before: load\)",
    ):
        broken(model(), Context(task=task))


def test_without_epochs_nothing_is_needed_and_nothing_changes():
    before = model()
    after = load_pass("train", {"epochs": 0})(before)
    assert digest(after) == digest(before)
    assert after.lineage[-1].verb == "train"


def test_without_samples_it_says_what_to_do():
    with pytest.raises(PassError, match=r"no training samples; name .*\[data\] tra"):
        load_pass("train", SMALL)(model())


def test_it_makes_nothing_smaller():
    assert load_pass("train").lossy is False


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": -1}, "epochs: expected a"),
        ({"optimizer": "adam"}, "optimizer: .*did you mean 'adamw'"),
        ({"checkpoint_s": 0}, "checkpoint_s: expected"),
        ({"loss": "no code"}, "loss: expected `module:function`"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(RecipeError, match=message):
        load_pass("train", parameters)
