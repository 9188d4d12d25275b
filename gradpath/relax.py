"""Relaxed operations: decisions, orders, steps and look-ups that let a gradient through.

`gp.mode` chooses what runs: `"soft"`, the relaxed value and its gradient; `"hard"`, the operation that a robot runs;
`"straight_through"`, the hard value with the gradient of the soft one. The temperature tau is above zero, and the soft
value tends to the hard one as tau tends to zero; each docstring bounds the error. tau is a number or an `Anneal`;
`scaled` multiplies all temperatures of a program.
"""

from gradpath.relax_choice import (
    argmax,
    bernoulli,
    categorical,
    marginalize,
    one_hot,
    perturbed,
    top_k,
    where,
)
from gradpath.relax_core import Anneal
from gradpath.relax_lookup import grid, nearest
from gradpath.relax_paths import chain, ctc, dtw
from gradpath.relax_scalar import (
    absolute,
    clip,
    collisions,
    iou,
    maximum,
    minimum,
    norm,
    quantize,
    round,
    sign,
    step,
    success,
    visibility,
)
from gradpath.relax_sort import permutation, quantile, rank, sort
from gradpath.relaxation import relaxation, scaled

__all__ = [
    "Anneal",
    "absolute",
    "argmax",
    "bernoulli",
    "categorical",
    "chain",
    "clip",
    "collisions",
    "ctc",
    "dtw",
    "grid",
    "iou",
    "marginalize",
    "maximum",
    "minimum",
    "nearest",
    "norm",
    "one_hot",
    "permutation",
    "perturbed",
    "quantile",
    "quantize",
    "rank",
    "relaxation",
    "round",
    "scaled",
    "sign",
    "sort",
    "step",
    "success",
    "top_k",
    "visibility",
    "where",
]
