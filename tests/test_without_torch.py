"""aioxarray without torch: nothing of it is imported, and what needs it says so."""

from __future__ import annotations

from pathlib import Path

from tests.runtime.helpers import run_script
from tests.without import raised_without


def test_importing_aioxarray_does_not_import_torch() -> None:
    code = "import aioxarray, sys; print('torch' in sys.modules)"
    assert run_script(code).splitlines()[-1] == "False"


def test_the_error_names_the_extra(tmp_path: Path) -> None:
    calls = {"import": "__import__('aioxarray.torch')"}
    error = raised_without(["torch"], calls, tmp_path)["import"]
    assert error.kinds[0] == "ModuleNotFoundError"
    assert "pip install 'aioxarray[torch]'" in error.text
