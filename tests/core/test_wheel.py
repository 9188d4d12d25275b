"""The wheel holds every module of the tree, and what it holds runs without the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AREAS = ("sim", "render", "perception", "planners", "examples")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that no build folder appears in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("gradpath", *AREAS):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_every_module_is_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"gradpath/{path.name}" for path in (ROOT / "gradpath").glob("*.py")} | {"gradpath/py.typed"}
    for area in AREAS:
        expected |= {f"gradpath/{path.relative_to(ROOT)}" for path in (ROOT / area).rglob("*.py")}
    expected |= {f"gradpath/{path.relative_to(ROOT)}" for path in (ROOT / "examples" / "assets").glob("*")}
    assert expected - inside == set()
    assert not [name for name in inside if name.startswith(("tests/", "sim/", "benchmarks/"))]


def test_examples_are_listed_from_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    # -S and a bare working folder would hide the dependencies too; PYTHONPATH comes before the editable install.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = subprocess.run(
        [sys.executable, "-c", "import gradpath.examples.__main__ as m; print(m.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path / "site")), where.stderr
    listing = subprocess.run(
        [sys.executable, "-m", "gradpath.examples"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert listing.returncode == 0, listing.stderr
    modules = (path for path in (ROOT / "examples").glob("[!_]*.py") if "\ndef main(" in path.read_text())
    for path in modules:
        assert any(line.split()[:1] == [path.stem] for line in listing.stdout.splitlines())
