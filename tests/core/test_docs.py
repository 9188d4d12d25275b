"""The pages run: their code works, prints what they say, and what they name exists."""

import contextlib
import dataclasses
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str | None]]:
    """The Python of a page, block by block, at its own line numbers, and the text that it should print.

    A `text` block counts as what is printed where nothing but an empty line is between it and the code.
    """
    text = page.read_text()
    found = list(FENCE.finditer(text))
    for number, block in enumerate(found):
        if block[1] == "python":
            after = found[number + 1] if number + 1 < len(found) else None
            adjacent = (
                after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
            )
            yield (
                "\n" * text.count("\n", 0, block.start(2)) + block[2],
                after[2] if after and adjacent else None,
            )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(blocks(page))
    script = tmp_path / f"{page.stem}.py"  # a file: Warp reads the source of a kernel
    lines = [""] * len(page.read_text().splitlines())
    for code, _ in found:
        for number, line in enumerate(code.splitlines()):
            lines[number] = line or lines[number]
    script.write_text("\n".join(lines) + "\n")
    names = {"__name__": f"page_{page.stem}"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for code, expected in found:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(script), "exec"), names)
            if expected is not None:
                assert tidy(printed.getvalue()) == tidy(expected)


def tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_a_kernel_takes_under_fifteen_lines():
    first, _ = next(blocks(ROOT / "docs" / "kernels.md"))
    assert len([line for line in first.splitlines() if line.strip()]) < 15


def test_files_and_targets_that_the_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
        for path in re.findall(r"`((?:tests|benchmarks|examples|docs)/[\w/.-]+\.\w+)`", text):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, flags=re.MULTILINE):
            assert target in targets, f"{page.name} names make {target}"


def test_options_and_weights_of_the_flight_task_are_those_in_its_tables():
    from gradpath.examples.flight import FlightOptions, flight_losses

    text = (ROOT / "docs" / "flight.md").read_text()
    options = dict(re.findall(r"^\| `--([a-z-]+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
    for field in dataclasses.fields(FlightOptions):
        assert options.pop(field.name.replace("_", "-")) == str(field.default)
    assert not options
    section = text.split("## The loss")[1].split("## ")[0]
    weights = re.findall(r"^\| (\w+) \| ([0-9.]+) \|", section, flags=re.MULTILINE)
    assert {name: float(value) for name, value in weights} == {
        name: term.weight for name, term in flight_losses().terms.items()
    }


def test_the_reference_lists_every_public_name():
    targets = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert len(set(targets)) == len(targets)
    for target in targets:
        module, _, name = target.rpartition(".")
        assert hasattr(importlib.import_module(module), name), target
    for area in ("gradpath", "gradpath.sim", "gradpath.render", "gradpath.perception", "gradpath.planners"):
        for name in importlib.import_module(area).__all__:
            full = f"{area}.{name}"  # a function in the module of its name is found under both
            assert full in targets or f"{full}.{name}" in targets, f"docs/api.md lacks {full}"
