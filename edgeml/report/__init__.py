"""The report of a build: ``report.json`` for programs, ``report.html`` for people.

1. Both are made from the same records and say the same.
2. Equal outcomes give equal bytes: no time, no path, no random identifier.
3. Names in a report come from users and models; the page trusts none of them.
"""

from .document import read_report, report_json, report_values
from .page import report_html
from .words import summary_lines

__all__ = [
    "read_report", "report_html", "report_json", "report_values", "summary_lines"
]  # fmt: skip
