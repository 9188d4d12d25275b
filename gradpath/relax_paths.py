"""Relaxed dynamic programming: chains of states, labels along time, alignments. See `gradpath.relax`."""

from __future__ import annotations

import torch
from torch import Tensor

from gradpath.errors import ShapeError
from gradpath.relax_core import Temperature, choose, chosen, draw, register_relaxation
from gradpath.relaxation import relaxation

_NEVER = -1e30  # a score that no path can afford; finite, so that differences of it are no NaN


@relaxation("relax.chain", decision=chosen)
def chain(scores: Tensor, transitions: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """The states of the best path through time: soft parsing of a sequence.

    Args:
        scores: Score of each state at each time, (B, T, S).
        transitions: Score of going from state i to state j, (S, S).
        tau: Temperature of the path.
    Returns:
        (B, T, S), 1 at the state of the best path (Viterbi), else 0.

    Soft: the marginals of paths with probability proportional to exp(score / tau). Error: the absolute differences at
    one time add up to at most 2 S^T exp(-m / tau), where m is the margin between the best and the second path.

    References: Mensch, Blondel 2018, Differentiable Dynamic Programming.
    """
    t = float(tau)
    states = scores.shape[-1]
    if scores.ndim != 3 or transitions.shape != (states, states):
        got = f"{tuple(scores.shape)} and {tuple(transitions.shape)}"
        raise ShapeError(f"relax.chain: expected scores (B, T, S) and transitions (S, S), got {got}")

    def through(best: bool) -> Tensor:
        """The (soft) best score of all paths through each state at each time, (B, T, S)."""

        def reduce(x: Tensor, dim: int) -> Tensor:
            return x.amax(dim) if best else t * torch.logsumexp(x / t, dim)

        length = scores.shape[1]
        ahead, behind = [scores[:, 0]], [torch.zeros_like(scores[:, 0])]
        for time in range(1, length):
            ahead.append(scores[:, time] + reduce(ahead[-1][:, :, None] + transitions, 1))
        for time in range(length - 1, 0, -1):
            behind.append(reduce(transitions + (scores[:, time] + behind[-1])[:, None, :], 2))
        return torch.stack(ahead, 1) + torch.stack(behind[::-1], 1)

    def hard() -> Tensor:
        best = through(True)
        return torch.nn.functional.one_hot(best.argmax(-1), states).to(scores.dtype)

    return choose(lambda: torch.softmax(through(False) / t, -1), hard)


@relaxation("relax.ctc")
def ctc(log_probabilities: Tensor, labels: Tensor, *, blank: int = 0, tau: Temperature = 1.0) -> Tensor:
    """The cost of the best alignment of a sequence of labels with time: connectionist temporal classification.

    Args:
        log_probabilities: Of each symbol at each time, (B, T, C).
        labels: Without blanks, (B, L), int64; L may be 0.
        blank: The symbol between labels.
        tau: Temperature of the alignment; at 1 this is the CTC loss.
    Returns:
        (B,). About 1e30 where no alignment fits in T steps.

    Soft: -tau log of the sum over alignments of exp(score / tau). Error: below, by at most tau log N for N
    alignments, which are at most 3^T.

    References: Graves et al. 2006, Connectionist Temporal Classification.
    """
    t = float(tau)
    if log_probabilities.ndim != 3 or labels.ndim != 2 or len(labels) != len(log_probabilities):
        got = f"{tuple(log_probabilities.shape)} and {tuple(labels.shape)}"
        raise ShapeError(f"relax.ctc: expected log_probabilities (B, T, C) and labels (B, L), got {got}")
    batch, count = labels.shape
    symbols = torch.full((batch, 2 * count + 1), blank, dtype=torch.long, device=labels.device)
    symbols[:, 1::2] = labels
    skip = torch.zeros_like(symbols, dtype=torch.bool)  # from label to label, over the blank between
    skip[:, 3::2] = labels[:, 1:] != labels[:, :-1]

    def cost(best: bool) -> Tensor:
        emitted = log_probabilities.gather(2, symbols[:, None].expand(-1, log_probabilities.shape[1], -1))
        position = torch.arange(symbols.shape[1], device=labels.device)
        never = torch.full_like(emitted[:, 0], _NEVER)
        score = torch.where(position < 2, emitted[:, 0], never)

        def reduce(x: Tensor) -> Tensor:
            return x.amax(0) if best else t * torch.logsumexp(x / t, 0)

        for time in range(1, emitted.shape[1]):
            one = torch.cat([never[:, :1], score[:, :-1]], 1)
            two = torch.where(skip, torch.cat([never[:, :2], score[:, :-2]], 1)[:, : score.shape[1]], never)
            score = (reduce(torch.stack([score, one, two])) + emitted[:, time]).clamp_min(_NEVER)
        return -reduce(score[:, -2:].T)

    return choose(lambda: cost(False), lambda: cost(True))


@relaxation("relax.dtw")
def dtw(costs: Tensor, *, tau: Temperature = 1.0) -> Tensor:
    """The cost of the best alignment of two sequences: dynamic time warping.

    Args:
        costs: Cost of matching element i of one with element j of the other, (B, n, m), such as
            `torch.cdist(x, y).square()`.
        tau: Temperature of the alignment, in units of cost.
    Returns:
        (B,): the sum of costs along the best path from (0, 0) to (n - 1, m - 1) by steps of one in i, in j, or both.

    Soft: -tau log of the sum over paths of exp(-cost / tau); its gradient is the expected alignment, (B, n, m), that
    of the hard one the best alignment. Error: below, by at most tau (n + m - 2) log 3.

    References: Sakoe, Chiba 1978; Cuturi, Blondel 2017, Soft-DTW.
    """
    t = float(tau)
    if costs.ndim != 3 or 0 in costs.shape[1:]:
        raise ShapeError(f"relax.dtw: expected costs (B, n, m), none of them empty, got {tuple(costs.shape)}")
    rows, columns = costs.shape[1:]

    def total(best: bool) -> Tensor:
        """Sweep over diagonals: all cells of one depend on the two before it alone."""
        index = torch.arange(rows, device=costs.device)
        never = torch.full_like(costs[:, :, 0], -_NEVER)
        before, now = never, torch.where(index == 0, costs[:, :, 0], never)
        for diagonal in range(1, rows + columns - 1):
            column = diagonal - index
            inside = (column >= 0) & (column < columns)
            here = costs[:, index, column.clamp(0, columns - 1)]
            from_above = torch.cat([never[:, :1], now[:, :-1]], 1)
            from_corner = torch.cat([never[:, :1], before[:, :-1]], 1)
            ways = torch.stack([now, from_above, from_corner])
            reached = ways.amin(0) if best else -t * torch.logsumexp(-ways / t, 0)
            before, now = now, torch.where(inside, here + reached, never)
        return now[:, -1]

    return choose(lambda: total(False), lambda: total(True))


register_relaxation(chain, lambda batch: {"scores": draw(batch, 4, 3), "transitions": draw(3, 3), "tau": 0.8})
register_relaxation(
    ctc,
    lambda batch: {
        "log_probabilities": torch.log_softmax(draw(batch, 5, 3), -1),
        "labels": torch.tensor([[1, 1]]).expand(batch, 2),
        "tau": 0.8,
    },
)
register_relaxation(dtw, lambda batch: {"costs": draw(batch, 3, 4).square(), "tau": 0.6})
