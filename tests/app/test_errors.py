import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_code_that_the_api_answers_is_documented():
    sources = "\n".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    by_name = re.findall(r'\b(?:code|not_found|gated)="([a-z_]+)"', sources)
    of_details = re.findall(r'Detail\([^()]*(?:\([^()]*\)[^()]*)*"((?:dataset|model|not|invalid|hub|secret)_[a-z_]+)"', sources)
    of_classes = re.findall(r'(?:status, type, code = .*|code(?:: str \| None)? = )"([a-z_]+)"$', sources, re.MULTILINE)
    codes = {*by_name, *of_details, *of_classes}
    page = (ROOT / "docs" / "errors.md").read_text()
    assert {"job_ended", "model_gated", "unauthorized", "internal"} <= codes
    assert sorted(code for code in codes if f"`{code}`" not in page) == []


def test_every_reason_to_refuse_a_row_is_documented():
    sources = "\n".join(path.read_text() for path in (ROOT / "worker" / "data").rglob("*.py"))
    codes = set(re.findall(r'(?:RowRefused\(|Refusal\([a-z_]+, )\s*"([a-z_]+)"', sources))
    page = (ROOT / "docs" / "errors.md").read_text()
    assert "no_answer" in codes
    assert sorted(code for code in codes if f"`{code}`" not in page) == []
