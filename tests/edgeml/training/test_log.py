"""The log: rows after a resume, and TensorBoard's events where it is installed."""

from dataclasses import replace

import pytest

from edgeml.training.log import Log, Row

ROWS = [Row(number, 5 * number, 0.125, 1.5, 0.25 * number, number) for number in (1, 2)]


def test_rows_that_were_known_come_once(tmp_path):
    for known in ([], ROWS[:1], ROWS):
        log = Log(tmp_path / "a", known)
        for row in ROWS[len(known) :]:
            log.write(row)
        log.close()
        assert (tmp_path / "a" / "log.csv").read_text().splitlines() == [
            "epoch,step,learning_rate,loss,score,best_epoch",
            "1,5,0.125,1.5,0.25,1",
            "2,10,0.125,1.5,0.5,2",
        ]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Log(None)
    log.write(ROWS[0])
    log.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_the_same_numbers_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, again = ROWS[1], replace(ROWS[1], score=0.75)
    for known, row in (([], ROWS[0]), (ROWS[:1], first), (ROWS[:1], again)):
        log = Log(tmp_path, known)
        log.write(row)
        log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("learning_rate", "loss", "score"):
        seen = [(one.step, one.value) for one in events.Scalars(name)]
        assert seen == [(row.step, getattr(row, name)) for row in (ROWS[0], again)]
