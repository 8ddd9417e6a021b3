"""The curves' table and picture, from given figures; measuring is not tested here."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

networks = pytest.importorskip("networks")

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def curves():
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import curves
    finally:
        sys.path.remove(str(ROOT / "bench"))
    return curves


def rows(curves, kind: str):
    return [
        curves.Row(
            kind, share, macs=int(1e7 * (1 - share)), parameters=100_000,
            size_bytes=4096, p50_ms=0.4 * (1 - share), ratio=1 - share,
            cut=0.5, tuned=0.99 - share / 50, distilled=0.992 - share / 50,
        )
        for share in curves.SHARES
    ]  # fmt: skip


def test_a_row_as_texts(curves):
    row = curves.cells(rows(curves, "plain")[2])
    assert row == (
        "plain", "50", "5,000", "100,000", "4.0", "0.2000", "0.500",
        "50.00", "98.00", "98.20",
    )  # fmt: skip
    assert len(row) == len(curves.COLUMNS)


def test_the_picture_shows_every_point_and_says_it(curves):
    import curves_plot

    both = [*rows(curves, "plain"), *rows(curves, "residual")]
    text = curves_plot.drawn(curves.panels(both))
    assert text == curves_plot.drawn(curves.panels(both))
    picture = ET.fromstring(text)
    marks = [one for one in picture.iter() if one.get("class") in ("d0", "d1")]
    assert len(marks) == 2 * 2 * len(curves.SHARES) + 2  # and those of the key
    lines = list(picture.iter(f"{SVG}polyline"))
    assert len(lines) == 4
    for line in lines:
        xs = [float(point.split(",")[0]) for point in line.get("points").split()]
        assert xs == sorted(xs, reverse=True)  # more pruned, further left
    told = picture.find(f"{SVG}desc").text
    assert "residual, distilled: 0 % pruned 99.20 % at 0.4 ms" in told


def test_a_collapse_lies_on_the_edge(curves):
    import curves_plot

    line = curves_plot.Line("fine-tuned", ((1.0, 99.0), (0.5, 10.0)), ("0", "90"))
    text = curves_plot.drawn([curves_plot.Panel("plain", (line,))])
    picture = ET.fromstring(text)
    (drawn,) = picture.iter(f"{SVG}polyline")
    ys = [float(point.split(",")[1]) for point in drawn.get("points").split()]
    assert ys[1] == pytest.approx(curves_plot.HEIGHT - curves_plot.BOTTOM)


def test_absent_data_is_named(curves, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(curves, "MNIST", tmp_path / "mnist")
    monkeypatch.setattr(sys, "argv", ["curves", "--quick"])
    assert curves.main() == 0
    assert "../shared/data/mnist is absent" in capsys.readouterr().err


def test_kinds_are_those_of_the_simulator(curves):
    assert tuple(networks.KINDS) == curves.KINDS
