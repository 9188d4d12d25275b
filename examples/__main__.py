"""`python -m gradpath.examples` lists the examples; with a name, it runs one."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from gradpath.errors import GradpathError


def find_examples() -> dict[str, str]:
    """Return the examples and their first docstring lines, in alphabetical order, without importing them.

    An example is a module beside this one with a function `main`, whose parameters are its options.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """List the examples, or run the one that is named with the options behind its name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    examples = find_examples()
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, examples), default=0)
        for name, line in examples.items():
            print(f"{name:<{width}}  {line}")
        print("\npython -m gradpath.examples NAME --help lists the options of one.")
        return 0
    name = words[0]
    if name not in examples:
        print(f'no example "{name}"; there are: {", ".join(examples)}', file=sys.stderr)
        return 2
    module = importlib.import_module(f"gradpath.examples.{name}")
    try:
        tyro.cli(module.main, prog=f"python -m gradpath.examples {name}", args=words[1:])
    except GradpathError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
