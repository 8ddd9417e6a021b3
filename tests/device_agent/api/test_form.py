"""Forms: an input a part, or one part that is a body of its own."""

import pytest

from .conftest import ROW, refusal


class TestForms:
    def test_an_input_a_part(self, here):
        fields = {"a": (None, b"[1,2,3]"), "b": (None, b"[1, 2]", "application/json")}
        answer = here.ask("POST", "/v1/models/pair/predict", files=fields)
        assert answer.json()["outputs"]["negated"] == [[-1, -2]]

    def test_one_part_is_a_body_of_its_own(self, here, ask):
        fields = {"rows": ("rows.csv", b"1,-2,0.5,3\n4,3,2,1\n", "text/csv")}
        answer = here.ask("POST", "/v1/models/linear/predict", files=fields)
        assert (
            answer.json()["rows"] == ask("linear", [ROW, [4, 3, 2, 1]]).json()["rows"]
        )

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"a": "[1,2,3]", "q": "[1,2]"}, "would be input 'a' a second time"),
            ({"a": "[1,2,3]", "b": "x"}, "not JSON"),
            ({f"p{at}": "1" for at in range(20)}, "over 16 parts"),
        ],
    )
    def test_what_is_refused(self, here, fields, text):
        files = {name: (None, value) for name, value in fields.items()}
        answer = here.ask("POST", "/v1/models/pair/predict", files=files)
        assert text in refusal(answer)

    @pytest.mark.parametrize(
        ("kind", "body", "text"),
        [
            ("multipart/form-data", b"", "without a boundary"),
            ("multipart/form-data; boundary=x", b"", "cut off or empty"),
            ("multipart/form-data; boundary=x", b"nothing like it", "damaged"),
            (
                "multipart/form-data; boundary=x",
                b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n[1,2',
                "cut off",
            ),
            (
                "multipart/form-data; boundary=x",
                b"--x\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n[1]\r\n"
                b"--x--\r\n",
                "found [1, 1]",
            ),
        ],
    )
    def test_damaged_ones(self, ask, kind, body, text):
        assert text in refusal(ask("linear", body, kind))
