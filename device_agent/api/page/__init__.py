"""The pages for browsers: ``page`` (models, trying one, live figures) and ``docs``.

Each is sent as one document: style and script stand in it, and its
Content-Security-Policy allows these and nothing else, so that it works offline and
nobody can add to it.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A document and the headers that it is sent with."""

    html: bytes
    headers: dict[str, str]


def read(name: str) -> Page:
    """The page called ``name``, put together from its files."""
    head = (_FOLDER / "head.html").read_text("utf-8")
    style = (_FOLDER / "page.css").read_text("utf-8")
    script = (_FOLDER / f"{name}.js").read_text("utf-8")
    html = (_FOLDER / f"{name}.html").read_text("utf-8")
    html = html.replace("<!-- head -->\n", head)
    html = html.replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; "
        f"script-src {_digest(script)}; "
        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Page(html.encode(), headers)


def _digest(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
