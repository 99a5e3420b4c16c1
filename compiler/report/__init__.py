"""What a compile says to people: report.html, and what `--json` prints; on the terminal see `summary`.

report_html(result)             one self-contained page, as bytes
result_json(result)             plain data, described by compiler/schemas/result.schema.json
"""

from __future__ import annotations

from qatc.compiler.report.document import envelope, inspection_json, result_json
from qatc.compiler.report.page import report_html

__all__ = ["envelope", "inspection_json", "report_html", "result_json"]
