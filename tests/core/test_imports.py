"""Who may import whom: the core no area, an area the core and never another area."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AREAS = ("sim", "render", "perception", "planners", "examples")
PROGRAMS = {"cli.py", "__main__.py"}  # put areas together, like examples


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import; write it absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_areas(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path)]
    return {p[1] for p in parts if p[0] == "gradpath" and len(p) > 1 and p[1] in AREAS}


def core_files() -> list[Path]:
    return [path for path in (ROOT / "gradpath").glob("*.py") if path.name not in PROGRAMS]


@pytest.mark.parametrize("path", core_files(), ids=lambda path: path.name)
def test_the_core_imports_no_area(path):
    assert not imported_areas(path)


@pytest.mark.parametrize("area", AREAS[:-1])
def test_areas_do_not_import_each_other(area):
    for path in (ROOT / area).glob("*.py"):
        others = imported_areas(path) - {area}
        assert not others, (
            f"{area}/{path.name} imports {', '.join(sorted(others))}; exchange tensors, not modules"
        )


def test_no_file_is_imported_around_its_namespace():
    for area in AREAS:
        for path in (ROOT / area).glob("*.py"):
            roots = {name.split(".")[0] for name in imported(path)}
            assert not roots & set(AREAS), f"{path} imports an area by its folder; write gradpath.{area}"
