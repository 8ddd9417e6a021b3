"""How the bench of teachers and students judges, and what its recipes say."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import compress as bench  # noqa: E402

from edgeml.intake.importer import load_model  # noqa: E402
from edgeml.intake.modules import importable  # noqa: E402
from edgeml.outcome import Candidate, Evaluation  # noqa: E402
from edgeml.recipes.recipe import Recipe, read_recipe  # noqa: E402

DATA = sorted(bench.TEACHER_TOP1)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """The bench's folder with a teacher's weights in it, as a run has it."""
    folder = tmp_path / "compress"
    shutil.copytree(bench.RECIPES, folder)
    (folder / bench.WEIGHTS).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def recipe(folder: Path, data: str, role: str) -> Recipe:
    return read_recipe(folder / f"{data}-{role}.toml")


def row(role: str, top1: float, **more: Any) -> bench.Row:
    teacher = role == bench.TEACHER
    evaluation = Evaluation({"top1": top1}, 1000, "")
    entrant = bench.Entrant(
        role=role, recipe=None,  # type: ignore[arg-type]
        parameters=1_100_000 if teacher else 30_000, bundle=Path(),
        candidate=Candidate(role, "fp32", "chosen", evaluation=evaluation),
        why="", made_s=1.0,
    )  # fmt: skip
    ratio = 1.0 if teacher else 30.0
    made = bench.Row("mnist", entrant, 0.1, ratio, ratio, bench.lost(0.995, top1))
    return replace(made, **more)


def missed(*rows: bench.Row, quick: bool = False) -> list[str]:
    return [one.promise for one in bench.verdicts(rows, quick) if one.missed]


def rows(student: bench.Row, teacher: float = 0.995) -> list[bench.Row]:
    return [row("teacher", teacher), row("plain", 0.9), student, row("pruned", 0.99)]


def test_all_promises_can_hold() -> None:
    assert missed(*rows(row("student", 0.985))) == []


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"smaller": 19.9}, "smaller"),
        ({"faster": 4.9}, "faster"),
        ({"drop_points": 1.01}, "lost"),
    ],
    ids=str,
)
@pytest.mark.parametrize("role", bench.DISTILLED)
def test_each_limit_is_a_limit(
    change: dict[str, float], promise: str, role: str
) -> None:
    (found,) = missed(*rows(row(role, 0.99, **change)))
    assert promise in found and role in found


def test_a_teacher_that_knows_too_little_is_a_miss_unless_quick() -> None:
    given = rows(row("student", 0.99), teacher=0.9929)
    assert missed(*given) == ["mnist: top1 of the teacher"]
    assert missed(*given, quick=True) == []


def test_a_small_teacher_is_a_miss() -> None:
    teacher = row("teacher", 0.995)
    small = replace(teacher, entrant=replace(teacher.entrant, parameters=999_999))
    found = missed(small, *rows(row("student", 0.99))[1:])
    assert found == ["mnist: parameters of the teacher"]


@pytest.mark.parametrize("place", range(4))
def test_who_ships_nothing_is_a_miss(place: int) -> None:
    given = rows(row("student", 0.99))
    entrant = replace(given[place].entrant, candidate=None, bundle=None, why="no luck")
    given[place] = replace(given[place], entrant=entrant)
    (found,) = missed(*given)
    assert entrant.role in found and "no luck" in found
    assert len(bench.cells(given[place])) == len(bench.COLUMNS)


def test_the_worst_slice_is_a_speaker_or_a_class() -> None:
    spoken = Evaluation({}, 4, "", slices={"speaker": {"theo": 0.94, "lucas": 0.99}})
    assert bench.worst_slice(spoken) == ("speaker theo", 0.94)
    confused = Evaluation({}, 4, "", confusion=((9, 1), (2, 8)))
    assert bench.worst_slice(confused) == ("class 1", 0.8)


def test_quick_trains_for_a_part_of_the_epochs() -> None:
    text = 'verb = "train"\nepochs = 9\nbatch = 9\n'
    assert "epochs = 2\nbatch = 9" in bench.hurried(text)
    assert "epochs = 1\n" in bench.hurried(text.replace("9", "2"))


@pytest.mark.parametrize("data", DATA)
def test_plain_and_student_differ_in_the_teacher_alone(
    data: str, recipes: Path
) -> None:
    teacher, plain, student, pruned = (recipe(recipes, data, r) for r in bench.ROLES)
    (alone,), (taught,) = plain.passes, student.passes
    cut, again = pruned.passes
    assert (cut.verb, cut.parameters["epochs"], again.verb) == ("prune", 0, "distill")
    assert (alone.verb, taught.verb) == ("train", "distill")
    own = dict(taught.parameters)
    assert own.pop("student") == plain.model.source
    assert own == alone.parameters == again.parameters
    for one in (student, pruned):
        assert one.model.source == teacher.model.source
        assert one.model.weights == bench.WEIGHTS
    for one in (student, pruned, teacher):
        for same in ("data", "preprocess", "metric", "budget", "targets", "seed"):
            assert getattr(one, same) == getattr(plain, same)
    assert student.budget.max_accuracy_drop == bench.DROP_POINTS / 100
    assert plain.quantize == student.quantize


@pytest.mark.parametrize("data", DATA)
def test_the_networks_are_as_large_as_promised(data: str, recipes: Path) -> None:
    found = [recipe(recipes, data, role).model for role in ("teacher", "plain")]
    teacher, student = (
        load_model(one.source, None, recipes, one.inputs) for one in found
    )
    assert teacher.outputs == student.outputs

    def count(model: Any) -> int:
        return sum(one.numel() for one in model.payload.parameters())

    assert count(teacher) >= bench.TEACHER_PARAMETERS
    # with two bytes a parameter: quantizing is not what makes it small enough
    assert 4 * count(teacher) > bench.SMALLER * 2 * count(student)
    again = load_model(found[0].source, None, recipes, found[0].inputs)
    for one, other in zip(
        teacher.payload.parameters(), again.payload.parameters(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("data", "kind"), [("mnist", "images"), ("fsdd", "sounds")])
def test_augmented_inputs_are_like_the_others(
    data: str, kind: str, recipes: Path
) -> None:
    from importlib import import_module

    with importable(recipes, "augment"):
        augment = getattr(import_module("augment"), kind)
    name, shape = next(iter(recipe(recipes, data, "plain").model.inputs.items()))
    batch = torch.rand(8, *shape[1:], generator=torch.Generator().manual_seed(0))
    kept = batch.clone()
    one, two, other = (
        augment({name: batch}, torch.Generator().manual_seed(seed))[name]
        for seed in (0, 0, 1)
    )
    assert torch.equal(batch, kept)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == batch.shape and one.isfinite().all()
    assert not torch.equal(one, batch)
