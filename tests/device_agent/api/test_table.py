"""Tables: lines of CSV, and lists of lists as arrays."""

import numpy as np
import pytest

from device_agent.api.table import CSV_BYTES_MAX, array_of, read_csv
from device_agent.errors import RequestError, TooLargeError

from .conftest import ROW, ROWS_MAX, outputs, refusal


class TestCsv:
    def test_a_line_is_a_sample(self, ask):
        found = ask("linear", b"1,-2,0.5,3\n", "text/csv")
        assert outputs(found) == outputs(ask("linear", ROW))

    def test_lines_are_rows(self, ask):
        found = ask("linear", b"a,b,c,d\n1,-2,0.5,3\r\n\r\n4,3,2,1").json()["rows"]
        assert found == ask("linear", [ROW, [4, 3, 2, 1]]).json()["rows"]

    def test_steps_come_before(self, ask):
        found = ask("scaled", b"1,-2,0.5,3\n1,-2,0.5,3\n").json()["rows"]
        assert found == [{"predictions": ask("scaled", ROW).json()["predictions"]}] * 2

    def test_a_line_as_long_as_the_sample(self, ask):
        line = ",".join(["1"] * 192).encode()
        assert ask("fixed", line).json()["outputs"] == {"mean": [[1, 1, 1]]}

    @pytest.mark.parametrize(
        "text",
        ["1;-2;0,5;3", "1\t-2\t0.5\t3", "\ufeff1,-2,.5,3", '"1","-2","0.5","3"',
         " 1, -2, 5e-1, 3 "],
    )  # fmt: skip
    def test_dialects(self, text):
        assert read_csv(text.encode(), 9).tolist() == [ROW]

    def test_whole_numbers_stay_whole(self):
        assert read_csv(b"1,2\n3,-9007199254740991\n", 9).dtype == np.int64
        assert read_csv(b"1,18446744073709551615\n", 9).dtype == np.float64
        assert read_csv(b"1,2.0\n", 9).dtype == np.float64

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"1,2,3,4\n1,2,3", "line 2 has 3 columns; expected 4"),
            (b"1,2,3,4\n1,2,x,4", "line 2, column 3: expected a number, found 'x'"),
            (b"a,b\n", "no line of numbers"),
            (b"\n\n", "no line of numbers"),
            (b"1,\xff", "not UTF-8"),
            (b'1,"' + b"2" * 200_000, "is not CSV"),
        ],
    )
    def test_what_is_refused(self, body, text):
        with pytest.raises(RequestError, match=text):
            read_csv(body, 9)

    def test_too_many_lines(self, ask):
        body = b"1,2,3,4\n" * (ROWS_MAX + 1)
        assert "more than 8 lines of CSV" in refusal(ask("linear", body), 413)

    def test_more_text_than_is_read(self):
        with pytest.raises(TooLargeError, match="bytes of CSV; at most"):
            read_csv(b"1," * CSV_BYTES_MAX, 9)

    def test_several_inputs(self, ask):
        assert "CSV is for models with one input" in refusal(ask("pair", b"1,2,3"))

    def test_nan(self, ask):
        assert "NaN or infinite" in refusal(ask("linear", b"nan,1,2,3", "text/csv"))


class TestArrays:
    def test_whole_numbers_beyond_64_bits(self):
        assert array_of([2**70, 1], "it").tolist() == [2.0**70, 1.0]
        with pytest.raises(RequestError, match="beyond 64 bits"):
            array_of([10**400], "it")

    def test_a_list_deeper_than_any_array(self):
        value: object = 1
        for _ in range(40):
            value = [value]
        with pytest.raises(RequestError, match="over 16 deep"):
            array_of(value, "it")
