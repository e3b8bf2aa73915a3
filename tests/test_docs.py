"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_about_the_study_file_is_the_schema_s():
    spec = importlib.util.spec_from_file_location("generate_study_file", ROOT / "docs" / "generate_study_file.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8") == generator.page()
