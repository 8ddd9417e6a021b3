import pytest

from device_agent.contract.topics import Topics, ingest, parse


def test_every_topic_lies_below_the_devices_own_root() -> None:
    topics = Topics("acme", "cam-7")
    assert topics.root == "edgeml/1/acme/d/cam-7"
    up = (topics.state, topics.birth, topics.reported, topics.records, topics.response)
    assert all(one.startswith(f"{topics.root}/up/") for one in up)
    assert all(one.startswith(f"{topics.root}/dn/") for one in topics.down)
    assert len({*up, *topics.down}) == 8


def test_a_topic_is_read_back() -> None:
    topics = Topics("acme", "cam-7")
    assert parse(topics.records) == (topics, "up/rec")


@pytest.mark.parametrize(
    "topic",
    [
        "edgeml/2/acme/d/cam-7/up/birth",
        "edgeml/1/acme/d/cam-7/side/birth",
        "edgeml/1/acme/d/Cam/up/birth",
        "edgeml/1/acme/d/cam-7/up/birth/x",
        "",
    ],
)
def test_others_topics_are_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="not a topic"):
        parse(topic)


@pytest.mark.parametrize("device", ["", "a" * 65, "a/b", "+", "#", "Ä", "a\n"])
def test_an_id_that_could_mean_others_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        Topics("acme", device)


def test_the_fleet_hears_every_device_once() -> None:
    assert ingest("g") == "$share/g/edgeml/1/+/d/+/up/#"
