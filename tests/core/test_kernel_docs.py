"""The code of docs/kernels.md runs, and a new differentiable kernel takes under 15 lines."""

import re
import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_a_kernel_takes_under_fifteen_lines():
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) < 15


def test_the_page_runs(tmp_path):
    script = tmp_path / "page.py"  # a file: Warp reads the source of a kernel
    script.write_text("\n".join(SNIPPETS))
    names = runpy.run_path(str(script))
    assert {"spring", "by_hand"} <= names.keys()
