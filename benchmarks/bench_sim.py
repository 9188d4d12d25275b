"""How many steps per second, forward and with the gradient, and how right is it? gradpath beside its peers.

python benchmarks/bench_sim.py [--systems quadrotor ant] [--worlds 1 64 1024] [--engines gradpath newton brax]
    [--python PYTHON] [--seconds 2] [--json sim.json]
python benchmarks/bench_sim.py --memory

The peers want packages of their own, so they run in an interpreter of their own, and those it has not are left out:

    python -m venv peers && peers/bin/pip install newton mujoco mujoco-mjx brax "jax[cpu]" gymnasium
    python benchmarks/bench_sim.py --python peers/bin/python

Robots come from files that all engines read: gymnasium's, and the Panda arm of example-robot-data. A quadrotor is a
free body with thrust and torques; gradpath's is `sim.Quadrotor`, with drag, motor lags and commanded rates besides.
Each measurement is a process on one core. A step is one step of integration of 10 ms, of the Panda 2 ms; motions have
as many as `_sim_systems.py` says. Rates count processor time, the best of three spells. "both" is a motion of all
worlds and the gradient of a loss of its end with respect to all commands. "error" is that gradient of one world in
float32 over 20 steps against central differences of the same engine's own forward, in float64 (Newton has only
float32), relative.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _sim_measure import ENGINES
from _sim_systems import SYSTEMS, panda, path

HERE = Path(__file__).parent
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
# What is freed goes back to the system at once, so that peak memory is that of what is in use; it costs time.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
ERROR_STEPS = 20


def run(python: Path, script: str, arguments: list[str], **environment: str) -> dict[str, Any]:
    """The last line of a script of this folder, in a process of its own with one thread."""
    command = [str(python), str(HERE / script), *arguments]
    done = subprocess.run(command, env=os.environ | ONE_THREAD | environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        return {"failed": "".join(done.stderr.splitlines(keepends=True)[-3:])}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row per system, number of worlds and engine; printed as it is found."""
    rows = []
    print(f"{'system':17}{'worlds':>7}  {'engine':10}{'forward /s':>12}{'both /s':>12}{'error':>11}")
    for name in options.systems:
        system = SYSTEMS[name]
        file = path(system, folder) if system.file else folder
        for worlds in options.worlds:
            for engine in options.engines:
                python = Path(sys.executable) if engine in ("gradpath", "torch") else options.python
                arguments = [engine, name, "--file", str(file), "--worlds", str(worlds)]
                arguments += ["--steps", str(system.steps[worlds > 64]), "--seconds", str(options.seconds)]
                arguments += ["--error-steps", str(ERROR_STEPS if worlds == min(options.worlds) else 0)]
                found = run(python, "_sim_measure.py", arguments)
                if not found:
                    continue
                rows.append({"system": name, "worlds": worlds, "engine": engine, **found})
                show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    for reason in ("missing", "failed"):
        if reason in row:
            print(
                f"{row['system']:17}{row['worlds']:7}  {row['engine']:10}{reason}: {row[reason].strip()}",
                flush=True,
            )
            return
    both, error = row.get("both"), row.get("error")
    print(
        f"{row['system']:17}{row['worlds']:7}  {row['engine']:10}{row['forward']:12,.0f}"
        f"{'' if both is None else format(both, ',.0f'):>12}{'' if error is None else format(error, '.1e'):>11}",
        flush=True,
    )


def measure_memory() -> list[dict[str, Any]]:
    """Peak memory of a motion of many quadrotors under a budget and without, for several numbers of steps."""
    print(f"{'steps':>7}{'budget':>10}{'peak MB':>9}{'seconds':>9}")
    rows = []
    for steps in (500, 2000):
        for budget in ("100MB", "all") if steps < 2000 else ("100MB",):
            row = run(Path(sys.executable), "_sim_memory.py", [str(steps), budget], **GIVE_BACK)
            if "failed" in row:
                raise SystemExit(f"{steps} steps with {budget}: {row['failed']}")
            rows.append({"steps": steps, "budget": budget, **row})
            print(f"{steps:7}{budget:>10}{row['peak'] / 1e6:9.1f}{row['seconds']:9.1f}", flush=True)
    return rows


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter of the peers")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time for each rate")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    options = parser.parse_args()
    if options.memory:
        rows = measure_memory()
    else:
        with tempfile.TemporaryDirectory() as folder:
            if "panda" in options.systems:
                panda(Path(folder))
            rows = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
