"""Checkpoints: whole or not at all, of this training or not used."""

import pytest

torch = pytest.importorskip("torch")

from edgeml.errors import UsageError  # noqa: E402
from edgeml.training.checkpoint import (  # noqa: E402
    Checkpoints,
    digest_of_tensors,
    restore,
    snapshot,
)


def test_what_was_saved_comes_back(tmp_path):
    content = {"state": {"step": 3, "rows": []}, "best": {"w": torch.arange(3.0)}}
    Checkpoints(tmp_path / "a", "me", 30).save(content)
    found = Checkpoints(tmp_path / "a", "me", 30).load()
    assert found["state"] == content["state"]
    assert torch.equal(found["best"]["w"], content["best"]["w"])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["checkpoint"]


def test_one_of_another_training_is_not_used(tmp_path):
    Checkpoints(tmp_path, "me", 30).save({"step": 1})
    assert Checkpoints(tmp_path, "you", 30).load() is None


@pytest.mark.parametrize("damage", [b"", b"x", b"cut", b"flip", b"junk"])
def test_a_damaged_one_is_not_used(tmp_path, damage):
    Checkpoints(tmp_path, "me", 30).save({"w": torch.ones(10)})
    path = tmp_path / "checkpoint"
    raw = path.read_bytes()
    half = len(raw) // 2
    path.write_bytes(
        {
            b"cut": raw[:half],
            b"flip": raw[:half] + bytes([raw[half] ^ 1]) + raw[half + 1 :],
            b"junk": raw + b"\n",
        }.get(damage, damage)
    )
    assert Checkpoints(tmp_path, "me", 30).load() is None


def test_reading_one_runs_no_code(tmp_path):
    import hashlib
    import io
    import pickle

    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("hit").touch, ())

    stream = io.BytesIO()
    torch.save({"identity": "me", "w": Attack()}, stream)
    raw = stream.getvalue()
    digest = hashlib.sha256(raw).hexdigest().encode()
    (tmp_path / "checkpoint").write_bytes(digest + b"\n" + raw)
    with pytest.raises(pickle.UnpicklingError):
        Checkpoints(tmp_path, "me", 30).load()
    assert not (tmp_path / "hit").exists()


def test_it_is_due_when_the_interval_is_over(tmp_path):
    now = [100.0]
    checkpoints = Checkpoints(tmp_path, "me", 30, clock=lambda: now[0])
    due = []
    for second in range(100, 200, 10):
        now[0] = second
        due.append(checkpoints.due())
        if due[-1]:
            checkpoints.save({})
    assert due == [False, False, False, True, False, False, True, False, False, True]


def test_without_a_folder_nothing_is_kept():
    checkpoints = Checkpoints(None, "", 0)
    assert not checkpoints.due()
    checkpoints.save({})
    assert checkpoints.load() is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "x", "me", 0).save({})


def module():
    made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    made.register_buffer("unsaved", torch.zeros(2), persistent=False)
    return made


def test_a_snapshot_holds_all_that_training_changes():
    trained = module()
    kept, before = snapshot(trained), digest_of_tensors(trained)
    trained.train()(torch.randn(4, 2))
    with torch.no_grad():
        trained[0].weight += 1
        trained.unsaved += 1
    assert digest_of_tensors(trained) != before
    restore(trained, kept)
    assert digest_of_tensors(trained) == before
