"""What a graph costs, and what its last layer sees."""

import numpy as np
from benches import CHANNELS, subject

from edgeml.graphs.graph import embeddings, summary


def test_the_summary_counts_operators_work_and_weights() -> None:
    found = summary(subject().model)
    assert found["operators"]["Conv"] == 2
    assert found["nodes"] == sum(found["operators"].values()) == 8
    assert found["macs"] == (
        CHANNELS * 9 * 64 + CHANNELS * CHANNELS * 9 * 16 + CHANNELS * 4 * 10
    )
    assert found["weight_bytes"] == 4 * (
        CHANNELS * 9 + CHANNELS * CHANNELS * 9 + CHANNELS * 4 * 10
    )
    assert found["inputs"][0]["name"] == "image"
    assert found["opset"] == 17


def test_embeddings_are_what_the_last_weighted_layer_reads() -> None:
    split = subject().validation
    found = embeddings(subject().model, split.feeds[:6])
    assert found.shape == (6, CHANNELS * 4)
    assert len(np.unique(found, axis=0)) == 6


def test_asking_does_not_change_the_model() -> None:
    payload = subject().model.payload
    before = payload.SerializeToString()
    summary(subject().model)
    embeddings(subject().model, subject().validation.feeds[:1])
    assert payload.SerializeToString() == before
