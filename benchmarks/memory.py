"""Does a long run's memory stay flat? Starts a script as a user would and watches its process.

    python -m benchmarks.memory                    cal_ql.py: 200,000 updates, 100,000 online steps
    python -m benchmarks.memory --script iql --eval-episodes 5 --utd 2       and the script's flags

A row for each of the script's own evaluations, ten in either phase unless told otherwise, in MB:

  private      memory that is the process's own, none of it shared or a file's: the lowest of the
               last second before the evaluation's line
  peak         the highest since the row before: a checkpoint is put together in memory
  ring         what the online rows take, of 4 (2 obs + act + 3) bytes each. They lie in zeros,
               which become memory as they are filled, so this may grow. On a GPU it is 0 here.
  rest         private - ring. The first row is before the first update; then its lowest values
               are to be flat, not each: an evaluation takes some 8 MB for a moment, and of the
               copies of the ring that a save makes the C library keeps up to some 70 MB for a while
  events       size of the TensorBoard file
  checkpoint   size of checkpoint.pt at that moment; it holds the online rows, too

The run's folder is a temporary one that is gone in the end, or --run-dir, which must not hold a run
already. What was broken off is started again from the beginning: it is one process that counts.
Linux alone tells all this.
"""

import json
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
EVERY = 0.1  # seconds between two looks at the process
COLUMNS = "phase", "step", "private", "peak", "ring", "rest", "events", "checkpoint"


@dataclass
class Args:
    script: Literal["iql", "awac", "cql", "cal_ql"] = "cal_ql"
    offline_steps: int = 200_000
    online_steps: int = 100_000
    run_dir: str = ""  # empty: a temporary folder


@dataclass
class Row:
    """One evaluation, in MB."""

    phase: str
    step: int
    private: float
    peak: float
    ring: float
    rest: float
    events: float
    checkpoint: float


def fail(problem: str) -> NoReturn:
    """One clear line and status 2."""
    print(f"memory.py: {problem}", file=sys.stderr)
    sys.exit(2)


def private(pid: int) -> float:
    """MB of anonymous memory; 0 when the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        status = ""
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def of_checkpoint(folder: Path, function: Callable, otherwise):
    """Of checkpoint.pt, or of the one before it in the moment in which the new one is renamed."""
    for name in ("checkpoint.pt", "checkpoint.previous"):
        with suppress(FileNotFoundError):
            return function(folder / name)
    return otherwise


def ring_of(folder: Path, step: int) -> float:
    """MB of the online rows after a step; a checkpoint tells how wide they are."""
    settings = json.loads((folder / "args.json").read_text())["settings"]
    rows = min(step - settings["offline_steps"], settings["buffer_size"])
    if rows <= 0:
        return 0.0
    ring = of_checkpoint(folder, partial(torch.load, weights_only=True), {})["ring"]
    return rows * 4 * ring.shape[1] / 1e6


def watch(process: subprocess.Popen, folder: Path) -> Iterator[Row]:
    """Passes the script's lines on to stderr; every line of an evaluation gives a row."""
    lines, samples, on_gpu = queue.Queue(), [], False
    threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put("")]).start()
    while True:
        try:
            line = lines.get(timeout=EVERY)
        except queue.Empty:
            samples.append(private(process.pid))
            continue
        if not line:
            return
        print(line, end="", file=sys.stderr, flush=True)
        on_gpu = on_gpu or ", cuda, " in line
        if progress := re.match(r"(offline|online) +(\d+)/\d+ ", line):
            samples = samples or [private(process.pid)]
            now, step = min(samples[-10:]), int(progress[2])
            ring = 0.0 if on_gpu else ring_of(folder, step)
            events = sum(path.stat().st_size for path in folder.glob("events*")) / 1e6
            checkpoint = of_checkpoint(folder, lambda path: path.stat().st_size, 0) / 1e6
            memory = now, max(samples), ring, now - ring
            yield Row(progress[1], step, *memory, events, checkpoint)
            samples = []


def measure(args: Args, flags: list[str], run_dir: Path) -> list[Row]:
    """Runs the script to its end and prints the table; ends as the script does if that fails."""
    steps = {"offline": args.offline_steps, "online": args.online_steps}
    line = [f"--{phase}-steps={n}" for phase, n in steps.items()]
    line += [f"--eval-every-{phase}={max(n // 10, 1)}" for phase, n in steps.items()]
    command = [sys.executable, str(ROOT / f"{args.script}.py"), *line, *flags]
    command += ["--run-dir", str(run_dir)]
    rows, process = [], subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for row in watch(process, run_dir):
            if not rows:
                print("|", " | ".join(COLUMNS), "|")
                print("|---" * len(COLUMNS) + "|")
            rows.append(row)
            phase, step, *numbers = astuple(row)
            print(f"| {phase} | {step} |", *(f"{x:.1f} |" for x in numbers), flush=True)
    except BaseException:
        process.terminate()
        raise
    finally:
        status = process.wait()
    if status < 0:
        fail(f"{args.script}.py was ended by signal {-status}")
    if status:
        sys.exit(status)  # it has said why
    return rows


def trend(rows: list[Row]) -> tuple[float, float]:
    """The lowest rest in the first and in the last quarter of the rows after the first one."""
    rest = [row.rest for row in rows[1:]]
    quarter = max(len(rest) // 4, 1)
    return min(rest[:quarter]), min(rest[-quarter:])


def main() -> None:
    args, flags = tyro.cli(Args, description=__doc__, return_unknown_args=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: fail("stopped; start it again"))
    if not Path("/proc/self/status").exists():
        fail("needs Linux, whose /proc tells what a process takes")
    if (Path(args.run_dir) / "args.json").exists():
        fail(f"--run-dir {args.run_dir}: holds a run; take another")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, flags, Path(args.run_dir or f"{folder}/run"))
    early, late = trend(rows)
    print(f"lowest rest: {early:.1f} MB in the first quarter, {late:.1f} MB in the last")


if __name__ == "__main__":
    main()
