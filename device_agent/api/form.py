"""Forms with files: multipart/form-data from ``curl -F`` and from browsers."""

from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import RequestError

PARTS_MAX = 16
"""Parts of one form."""


@dataclass
class Part:
    """One field or file."""

    name: str = ""
    content_type: str = ""
    body: bytes = b""


def read_form(body: bytes, content_type: str) -> list[Part]:
    """The parts of a form, in order.

    Raises:
        RequestError: it is damaged, cut off, empty or has too many parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(
            "multipart/form-data without a boundary; let the client write the "
            "Content-Type (curl -F file=@photo.jpg)"
        )
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(f"the form is damaged: {error}") from error
    if not form.ended or not form.parts:
        raise RequestError("the form is cut off or empty; expected a file or a field")
    return form.parts


class _Form:
    """What the parser has told so far; it tells in pieces."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._field = self._value = b""
        self._pieces: list[bytes] = []

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_field,
            "on_header_value": self._add_value,
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == PARTS_MAX:
            raise RequestError(f"the form has over {PARTS_MAX} parts")
        self.parts.append(Part())
        self._pieces = []

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        field = self._field.lower()
        if field == b"content-disposition":
            _, options = parse_options_header(self._value)
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
        elif field == b"content-type":
            self.parts[-1].content_type = self._value.decode("latin-1")
        self._field = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end_part(self) -> None:
        self.parts[-1].body = b"".join(self._pieces)

    def _end(self) -> None:
        self.ended = True
