"""gradpath: a gradient through everything."""

from gradpath import estimate, implicit, relax
from gradpath.contract import Contract
from gradpath.custom_gradient import CustomGradient, custom_gradient
from gradpath.deterministic import Determinism, deterministic
from gradpath.diagnosis import Check, Diagnosis, Finding
from gradpath.doctor import doctor
from gradpath.errors import (
    BudgetError,
    CaptureError,
    ContractError,
    GradientError,
    GradpathError,
    InputError,
    LoadError,
    MismatchError,
    NonFiniteError,
    ShapeError,
    WireError,
)
from gradpath.loss_matrix import LossMatrix, loss_matrix
from gradpath.losses import Losses, LossValues, Ramp, auxiliary
from gradpath.memory import Memory
from gradpath.mismatch import mismatch
from gradpath.mismatch_report import Gap, Mismatch
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
    "Check",
    "Contract",
    "ContractError",
    "CustomGradient",
    "Determinism",
    "Diagnosis",
    "Finding",
    "Gap",
    "GradientError",
    "GradientReport",
    "GradpathError",
    "InputError",
    "LoadError",
    "LossMatrix",
    "LossValues",
    "Losses",
    "Memory",
    "Mismatch",
    "MismatchError",
    "NonFiniteError",
    "Pipeline",
    "Ramp",
    "Rollout",
    "ShapeError",
    "Stage",
    "TrainState",
    "Trajectory",
    "WireError",
    "auxiliary",
    "check_finite",
    "current_mode",
    "custom_gradient",
    "deterministic",
    "doctor",
    "estimate",
    "gradient_report",
    "implicit",
    "load",
    "load_train_state",
    "loss_matrix",
    "mismatch",
    "mode",
    "observe",
    "relax",
    "save",
    "scan",
]
