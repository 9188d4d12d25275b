"""Errors of gradpath. Each message says what was wrong, what was got, why it matters and what to do."""


class GradpathError(Exception):
    """Base class of every error that gradpath raises on purpose."""


class ContractError(GradpathError, TypeError):
    """A stage does not do what its contract says: missing values, undeclared effects, no gradient rule."""


class ShapeError(GradpathError, ValueError):
    """A tensor has another shape, dtype or device than declared."""


class WireError(GradpathError, ValueError):
    """The stages of a pipeline cannot be wired as asked."""


class InputError(GradpathError, ValueError):
    """A value that no computation can use: non-finite, empty, out of range."""


class CaptureError(GradpathError, RuntimeError):
    """A step uses a tensor that a time loop cannot see, so a gradient would be lost."""


class BudgetError(GradpathError, ValueError):
    """A memory budget below what the smallest schedule needs."""


class NonFiniteError(GradpathError, ArithmeticError):
    """A value or gradient became NaN or infinite; names stage, time step and world."""


class GradientError(GradpathError, ArithmeticError):
    """A gradient rule is not what it says it is; names the operation, the input and the element."""


class LoadError(GradpathError, OSError):
    """A saved run is missing, damaged, newer than this version, or asks for code that is not allowed."""


class MismatchError(GradpathError, ArithmeticError):
    """Relaxed operations differ more from the hard ones than a limit allows; names the operations."""
