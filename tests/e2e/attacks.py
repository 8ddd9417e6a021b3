"""The table of attacks. Each can be run by hand, against any agent on this machine::

    python -m tests.e2e.attacks slow_headers 8000

An attack returns one line of what it saw, and fails when the agent's answer is not
clean: an error as JSON, or a closed connection within the deadline.
"""

import sys
from collections.abc import Callable, Mapping

from . import attack_bodies, attack_crowds, attack_wire
from .attack_tools import Target

ATTACKS: Mapping[str, Callable[[Target], str]] = {
    attack.__name__: attack
    for attack in (
        # time
        attack_wire.slow_headers,
        attack_wire.slow_body,
        attack_wire.silent,
        attack_wire.half_requests,
        attack_wire.half_bodies,
        # sizes
        attack_wire.ten_thousand_headers,
        attack_wire.one_huge_header,
        attack_wire.huge_url,
        attack_wire.big_body_announced,
        attack_wire.big_body_chunked,
        attack_wire.expect_continue,
        attack_wire.chunk_sizes,
        attack_wire.one_byte_chunks,
        attack_wire.chunk_extensions,
        # ends
        attack_wire.half_close,
        attack_wire.resets,
        attack_wire.answers_not_waited_for,
        attack_wire.pipelined_unread,
        # not this HTTP
        attack_wire.smuggling,
        attack_wire.other_protocols,
        attack_wire.garbage,
        # bodies and paths
        attack_bodies.deep_json,
        attack_bodies.nan_json,
        attack_bodies.odd_json,
        attack_bodies.huge_shapes,
        attack_bodies.binary_lengths,
        attack_bodies.compression_bombs,
        attack_bodies.image_bombs,
        attack_bodies.sound_and_table_bombs,
        attack_bodies.paths,
        attack_bodies.many_paths,
        attack_bodies.foreign_pages,
        # many
        attack_crowds.idle_2000,
        attack_crowds.idle_after_use,
        attack_crowds.every_place_taken,
        attack_crowds.churn,
        attack_crowds.crowd_of_bodies,
        attack_crowds.hard_questions,
        # memory
        attack_wire.answers_unread,
        attack_wire.json_unread,
        attack_bodies.wide_json,
        attack_bodies.large_photos,
    )
}


def main(name: str, port: str, *deadlines: str) -> None:
    """Run one attack; ``deadlines``: header_s, body_s and response_s of the agent."""
    target = Target(int(port), *map(float, deadlines))
    print(ATTACKS[name](target))


if __name__ == "__main__":
    main(*sys.argv[1:])
