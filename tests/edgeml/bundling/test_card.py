"""The model card: short, true to the records, safe to show."""

from dataclasses import replace

import pytest
from outcomes import outcome

from edgeml.bundling.card import card_markdown


@pytest.fixture(scope="module")
def build():
    return outcome()


def test_card_says_what_how_good_and_what_it_is_made_of(build):
    card = card_markdown(build, build.targets[0])
    for words in (
        "# kws 1.4.0 for cpu-x86_64",
        "int8 nncf on onnxruntime",
        "| top1 | 91.3 % | 91.1 % |",
        "| answers that changed | | 1.1 % |",
        "95 % interval of the change",
        "| Artifact size | 64.0 KiB | 38.9 KiB |",
        "| kitchen | 250 | 86.8 % | 86.5 % |",
        "calibration: 200 samples, stratified, seed 0",
        "## Known gaps",
    ):
        assert words in card
    assert len(card.splitlines()) < 80


def test_card_is_the_same_every_time(build):
    assert card_markdown(build, build.targets[0]) == card_markdown(
        outcome(), outcome().targets[0]
    )


def test_names_stay_text_and_on_their_line(build):
    evil = replace(build, name="<b>x</b>|\n# y")
    card = card_markdown(evil, build.targets[0])
    assert "<b>" not in card and "\n# y" not in card


def test_card_without_float_figures(build):
    oracle = replace(build.oracle, ece=None, slices={})
    card = card_markdown(replace(build, oracle=oracle), build.targets[0])
    assert "| calibration error (ECE) |  | 0.0230 |" in card


def test_no_card_where_nothing_ships(build):
    with pytest.raises(ValueError, match="nothing ships for openvino-cpu"):
        card_markdown(build, build.targets[1])
