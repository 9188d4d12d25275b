"""gradpath: a gradient through everything."""

from gradpath.contract import Contract
from gradpath.errors import (
    BudgetError,
    CaptureError,
    ContractError,
    GradpathError,
    InputError,
    LoadError,
    NonFiniteError,
    ShapeError,
    WireError,
)
from gradpath.losses import Losses, LossValues
from gradpath.memory import Memory
from gradpath.mode import current_mode, mode
from gradpath.pipeline import Pipeline
from gradpath.report import GradientReport, gradient_report
from gradpath.rollout import Rollout
from gradpath.scan import scan
from gradpath.stage import Stage, check_finite, observe
from gradpath.storage import TrainState, load, load_train_state, save
from gradpath.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "CaptureError",
    "Contract",
    "ContractError",
    "GradientReport",
    "GradpathError",
    "InputError",
    "LoadError",
    "LossValues",
    "Losses",
    "Memory",
    "NonFiniteError",
    "Pipeline",
    "Rollout",
    "ShapeError",
    "Stage",
    "TrainState",
    "Trajectory",
    "WireError",
    "check_finite",
    "current_mode",
    "gradient_report",
    "load",
    "load_train_state",
    "mode",
    "observe",
    "save",
    "scan",
]
