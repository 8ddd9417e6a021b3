"""The log: rows after a resume, and TensorBoard's events where it is installed."""

import sys
import types
from importlib.machinery import ModuleSpec

from edgeml.training.log import Log, Row

ROWS = [Row(number, 5 * number, 0.1, 1.5, 0.25 * number, number) for number in (1, 2)]


def test_rows_that_were_known_come_once(tmp_path):
    for known in ([], ROWS[:1], ROWS):
        log = Log(tmp_path / "a", known)
        for row in ROWS[len(known) :]:
            log.write(row)
        log.close()
        assert (tmp_path / "a" / "log.csv").read_text().splitlines() == [
            "epoch,step,learning_rate,loss,score,best_epoch",
            "1,5,0.1,1.5,0.25,1",
            "2,10,0.1,1.5,0.5,2",
        ]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Log(None)
    log.write(ROWS[0])
    log.close()
    assert not list(tmp_path.iterdir())


class Writer:
    """Has the interface of ``torch.utils.tensorboard.SummaryWriter``."""

    def __init__(self, log_dir, purge_step=None):
        self.said = [("open", log_dir, purge_step)]
        Writer.last = self

    def add_scalar(self, tag, value, step):
        self.said.append((tag, value, step))

    def close(self):
        self.said.append("close")


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    for name in ("tensorboard", "torch.utils.tensorboard"):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, name, module)
    log = Log(tmp_path, ROWS[:1])
    log.write(ROWS[1])
    log.close()
    assert Writer.last.said == [
        ("open", str(tmp_path), 6),
        ("learning_rate", 0.1, 10), ("loss", 1.5, 10), ("score", 0.5, 10), "close",
    ]  # fmt: skip
