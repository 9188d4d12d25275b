"""What Warp's automatic adjoints get silently wrong does not appear in any kernel that is differentiated so.

The rules are checked on the source: of every kernel without `enable_backward=False`, of every function that such a
kernel calls, and of every function given to `wp.grad`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for area in ("gradpath", "sim", "render", "perception", "planners")
    for path in (ROOT / area).glob("*.py")
]
MAX_UNROLL = 16  # Warp's own; a longer range is a dynamic loop


def kernel_kind(node: ast.FunctionDef) -> str | None:
    """ "kernel", "hand" (a kernel without automatic adjoint), "func", or None for plain Python."""
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        name = ast.unparse(call.func if call else decorator)
        if name == "wp.kernel":
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords} if call else {}
            return "hand" if keywords.get("enable_backward") == "False" else "kernel"
        if name.startswith("wp.func"):
            return "func"
    return None


def called_names(node: ast.AST) -> set[str]:
    """Names of the functions called, `a.b.f(x)` counting as f."""
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id
        for f in calls
        if isinstance(f, ast.Name | ast.Attribute)
    }


def given_to_grad(node: ast.AST) -> set[str]:
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == "wp.grad"]
    return {argument.id for call in calls for argument in call.args if isinstance(argument, ast.Name)}


def differentiated(trees: list[ast.Module]) -> list[ast.FunctionDef]:
    """The kernels with an automatic adjoint, and every Warp function whose adjoint they need."""
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    functions = [n for n in nodes if kernel_kind(n) == "func"]
    found = [n for n in nodes if kernel_kind(n) == "kernel"]
    wanted = {name for n in nodes if kernel_kind(n) for name in given_to_grad(n)}
    found += [n for n in functions if n.name in wanted]
    for node in found:  # grows while it is walked
        names = called_names(node)
        found += [n for n in functions if n.name in names and n not in found]
    return found


def is_static(loop: ast.For) -> bool:
    if not isinstance(loop.iter, ast.Call) or ast.unparse(loop.iter.func) not in ("range", "wp.static"):
        return False
    if ast.unparse(loop.iter.func) == "wp.static":
        return True
    for argument in loop.iter.args:
        if isinstance(argument, ast.Constant):
            if abs(argument.value) > MAX_UNROLL:
                return False
        elif ast.unparse(argument).startswith("wp.static("):
            continue
        else:
            return False
    return True


def stored(node: ast.AST) -> Iterator[ast.expr]:
    """The targets that a statement assigns to, tuples taken apart."""
    for n in ast.walk(node):
        targets = (
            n.targets if isinstance(n, ast.Assign) else [n.target] if isinstance(n, ast.AugAssign) else []
        )
        for target in targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]


def times_stored(statements: list[ast.stmt], text: str) -> int:
    """How often, at most, one run through the statements assigns to the target written as `text`."""
    count = 0
    for statement in statements:
        if isinstance(statement, ast.If):
            taken, other = times_stored(statement.body, text), times_stored(statement.orelse, text)
            returns = any(isinstance(s, ast.Return) for s in statement.body)
            count += other if returns and not statement.orelse else max(taken, other)
        elif isinstance(statement, ast.For | ast.While):
            count += times_stored(statement.body, text)
        else:
            count += sum(ast.unparse(target) == text for target in stored(statement))
    return count


def check_loop(loop: ast.For, function: ast.FunctionDef) -> Iterator[str]:
    """Names carried through a dynamic loop, other than sums that are only returned or stored afterwards."""
    earlier = [n for n in ast.walk(function) if getattr(n, "lineno", loop.lineno) < loop.lineno]
    assignments = [n for n in earlier if isinstance(n, ast.Assign | ast.AugAssign)]
    before = {t.id for n in assignments for t in stored(n) if isinstance(t, ast.Name)}
    sums = set()
    for statement in ast.walk(loop):
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            reads = {n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)}
            if not isinstance(statement.op, ast.Add | ast.Sub) or name in reads:
                yield f"{name} is carried through a dynamic loop by more than a sum"
            sums.add(name)
        elif isinstance(statement, ast.Assign):
            for target in stored(statement):
                if isinstance(target, ast.Name) and target.id in before:
                    yield f"{target.id} is carried through a dynamic loop"
                local = isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)
                if local and target.value.id in before:
                    yield f"an element of the local {target.value.id} is assigned in a dynamic loop"
    for statement in ast.walk(function):
        if getattr(statement, "lineno", 0) > (loop.end_lineno or 0) and isinstance(statement, ast.stmt):
            value = getattr(statement, "value", None)
            bare = isinstance(value, ast.Name) or isinstance(statement, ast.AugAssign)
            reads = {
                n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
            }
            if not bare and not isinstance(statement, ast.For | ast.If) and sums & reads:
                yield f"the sum {', '.join(sums & reads)} is used after its loop in the same function"


def violations(function: ast.FunctionDef) -> Iterator[str]:
    """Why Warp's adjoint of this function may be wrong."""
    arrays = {a.arg for a in function.args.args if a.annotation and "array" in ast.unparse(a.annotation)}
    for node in ast.walk(function):
        if isinstance(node, ast.While | ast.Break | ast.Continue):
            yield f"{type(node).__name__.lower()} statement"
        if isinstance(node, ast.For) and not is_static(node):
            yield from check_loop(node, function)
        scales = isinstance(node, ast.AugAssign) and not isinstance(node.op, ast.Add | ast.Sub)
        if scales and isinstance(node.target, ast.Subscript):
            yield f"in-place {ast.unparse(node)}"
        if isinstance(node, ast.Assign):
            for target in stored(node):
                own = isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)
                if own and target.value.id in arrays and ast.unparse(target) in ast.unparse(node.value):
                    yield f"overwrites {ast.unparse(target)} with a function of itself"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "wp.zeros":
                yield "a local array"
            if name == "wp.where" and ({"sqrt", "length", "log", "acos"} & called_names(node) or any(
                isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div) for n in ast.walk(node)
            )):  # fmt: skip
                yield "wp.where around a function with an infinite derivative"
    for text in {ast.unparse(t) for t in stored(function) if isinstance(t, ast.Subscript)}:
        if times_stored(function.body, text) > 1:
            yield f"{text} is assigned twice"


def test_no_kernel_of_the_library_breaks_a_rule():
    trees = [ast.parse(path.read_text(), str(path)) for path in SOURCES]
    functions = differentiated(trees)
    assert {"_measure_shape_distance", "safe_length"} <= {f.name for f in functions}
    assert "_find_closest_point" not in {f.name for f in functions}  # has no automatic adjoint
    found = [f"{f.name}: {reason}" for f in functions for reason in violations(f)]
    assert not found, "\n".join(found)


PLANTED = {
    "while": "while v < 1.0:\n    v = v * v",
    "break": "for i in range(4):\n    if i == 2:\n        break",
    "is carried through a dynamic loop": "v = x[0]\nfor i in range(n):\n    v = v * v",
    "v is carried": "v = x[0]\nfor i in range(20):\n    v = v * x[0]",
    "by more than a sum": "s = x[0]\nfor i in range(n):\n    s += s * x[i]",
    "m is carried": "m = x[0]\nfor i in range(n):\n    if x[i] > m:\n        m = x[i]",
    "used after its loop": "s = x[0]\nfor i in range(n):\n    s += x[i]\ny[0] = wp.exp(s)",
    "in-place": "y[0] *= x[1]",
    "function of itself": "y[0] = y[0] * y[0]",
    "y[0] is assigned twice": "y[0] = x[0]\ny[0] = x[1]",
    "v[0] is assigned twice": "v = wp.vec3()\nv[0] = x[0]\nv[0] = v[0] * x[0]",
    "element of the local v": "v = wp.vec3()\nfor i in range(n):\n    v[i] = x[i]",
    "a local array": "a = wp.zeros(shape=(4,), dtype=float)",
    "infinite derivative": "y[0] = wp.where(x[0] > 0.0, wp.sqrt(x[0]), 0.0)",
}

FINE = [
    "v = x[0]\nfor i in range(16):\n    v = v * v\ny[0] = v",
    "v = x[0]\nfor i in range(wp.static(count)):\n    v = v * v",
    "s = float(0.0)\nfor i in range(n):\n    t = x[i] * x[i]\n    s += t\nreturn s",
    "for t in range(n):\n    y[t + 1] = wp.sin(y[t])",
    "if x[0] > 0.0:\n    y[0] = x[0]\nelse:\n    y[0] = x[1]",
    "if x[0] > 0.0:\n    y[0] = x[0]\n    return\ny[0] = x[1]",
    "y[0] += x[0]",
]


def as_kernel(body: str, decorator: str = "@wp.kernel") -> ast.Module:
    header = f"{decorator}\ndef k(x: wp.array(dtype=float), y: wp.array(dtype=float), n: int):\n"
    return ast.parse(header + "\n".join(f"    {line}" for line in body.splitlines()))


@pytest.mark.parametrize("reason", PLANTED)
def test_a_planted_violation_is_found(reason):
    (function,) = differentiated([as_kernel(PLANTED[reason])])
    assert any(reason in found for found in violations(function))


@pytest.mark.parametrize("body", FINE)
def test_what_warp_gets_right_is_allowed(body):
    (function,) = differentiated([as_kernel(body)])
    assert not list(violations(function))


def test_functions_are_followed_and_hand_written_adjoints_left_alone():
    helper = as_kernel("while n > 0:\n    n = n - 1", "@wp.func").body
    helper[0].name = "helper"
    for decorator, body, count in (
        ("@wp.kernel", "y[0] = helper(x, y, n)", 2),
        ("@wp.kernel(enable_backward=False)", "y[0] = helper(x, y, n)", 0),
        ("@wp.kernel(enable_backward=False)", "y[0] = wp.grad(helper)(x, y, n)", 1),
    ):
        tree = as_kernel(body, decorator)
        assert len(differentiated([ast.Module(tree.body + helper, [])])) == count
