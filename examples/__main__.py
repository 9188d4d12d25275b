"""`python -m gradpath.examples` lists the examples; with a name, it runs one."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from gradpath.errors import GradpathError, InputError


def find_examples() -> dict[str, str]:
    """Return the examples and their first docstring lines, in alphabetical order, without importing them.

    An example is a module beside this one with a function `main`, whose parameters are its options and which
    returns its figures.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """List the examples, or run the one that is named with the options behind its name.

    Its figures are printed and written to metrics.json in the folder `--run`, by default runs/NAME.
    """
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
        command = with_run_folder(module.main, Path("runs") / name)
        tyro.cli(command, prog=f"python -m gradpath.examples {name}", args=words[1:])
    except (GradpathError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def with_run_folder(example: Callable[..., Mapping[str, Any]], default: Path) -> Callable[..., None]:
    """Return a command with the options of an example and one more, the folder for its figures.

    An example that has a parameter `run` itself, for pictures, is given the folder.
    """
    signature = inspect.signature(example)
    own = {name: parameter for name, parameter in signature.parameters.items() if name != "run"}

    def command(*, run: Path, **options: Any) -> None:
        from gradpath.cli import print_metrics
        from gradpath.runs import write_json

        if (run / "options.json").exists():
            raise InputError(
                f"{run} holds a training, whose metrics.json would be lost; choose another --run"
            )
        run.mkdir(parents=True, exist_ok=True)
        figures = example(**options) if len(own) == len(signature.parameters) else example(**options, run=run)
        write_json(run / "metrics.json", figures)
        print_metrics(figures)
        print(run / "metrics.json")

    help_of_run = tyro.conf.arg(help="The folder that metrics.json, with the figures, is written to.")
    types = get_type_hints(example, include_extras=True) | {"run": Annotated[Path, help_of_run]}
    extra = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types["run"])
    command.__signature__ = signature.replace(parameters=[*own.values(), extra])  # type: ignore[attr-defined]
    command.__annotations__, command.__doc__ = types, example.__doc__
    return command


if __name__ == "__main__":
    sys.exit(main())
