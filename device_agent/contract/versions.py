"""How versions are ordered, of agents and of runtimes."""

import re


def version_key(text: str) -> tuple[int, ...]:
    """What versions are ordered by: their leading numbers.

    >>> version_key("1.31.1") < version_key("2026.4.1-22134-releases")
    True
    """
    numbers = re.match(r"\d{1,9}(\.\d{1,9})*", text)
    return tuple(map(int, numbers.group().split("."))) if numbers else ()
