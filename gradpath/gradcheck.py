"""Prove every registered gradient, one line each: what `gradpath gradcheck` prints."""

from __future__ import annotations

from gradpath.errors import GradpathError, InputError
from gradpath.kernel_registry import Operation, registry
from gradpath.proof import Proof, prove
from gradpath.stage import close_match


def check_registry(name: str | None = None) -> bool:
    """Prove one registered operation, or all; print a table, and return whether all are what they say.

    Raises:
        InputError: no operation of this name.
    """
    if name is not None and name not in registry:
        known = ", ".join(sorted(registry))
        raise InputError(f'no operation "{name}"{close_match(name, registry)}; there are {known}')
    chosen = sorted(registry) if name is None else [name]
    width = max((len(word) for word in chosen), default=0)
    print(f"{'operation':{width}}  {'kind':9}  {'error':>8}  {'cosine':>7}  result")
    faults = []
    for word in chosen:
        try:
            proof = check_operation(registry[word])
        except GradpathError as error:
            print(f"{word:{width}}  {registry[word].kind:9}  {'':8}  {'':7}  FAILED")
            faults.append(str(error))
            continue
        result = "ok" if proof.passed else "FAILED"
        print(f"{word:{width}}  {proof.kind:9}  {proof.error:8.1e}  {proof.cosine:7.4f}  {result}")
        if proof.fault is not None:
            faults.append(proof.fault)
    print(f"\n{len(chosen) - len(faults)} of {len(chosen)} gradients are what they say")
    for fault in faults:
        print(fault)
    return not faults


def check_operation(operation: Operation) -> Proof:
    """Prove one operation with one and three worlds; return the worse proof.

    Raises:
        InputError: it has no samples.
    """
    if operation.samples is None:
        raise InputError(
            f'operation "{operation.name}" has no samples, so nothing holds its gradient; pass samples='
        )
    name, kind, call = operation.name, operation.kind, operation.call
    proofs = [prove(name, kind, call, operation.samples(batch)) for batch in (1, 3)]
    return max(proofs, key=lambda proof: (not proof.passed, proof.error))
