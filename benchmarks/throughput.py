"""What an update costs in each script, beside other programs, and how that cost grows.

    python -m benchmarks.throughput                  all scripts and rows of settings
    python -m benchmarks.throughput --d3rlpy PYTHON --corl FOLDER --calql FOLDER --jax PYTHON
    python -m benchmarks.throughput --grow           other batches, actions, widths and datasets

The other programs are optional and in no requirements file: d3rlpy by the Python of an environment
with `pip install d3rlpy`, CORL and the authors' Cal-QL (in JAX) by their checkouts, the latter with
the Python of an environment that has jax, flax, optax, distrax and ml_collections. What they are
and how they are called: peers.py.

Each program is a process. On random transitions they take gradient steps in turn, a slice of time
each: forward through the list, then backward, so that all see the machine alike; a first slice is a
warm-up and does not count. Their networks are of the same sizes, which is checked. The columns:

    ms per update   of a gradient step on a batch that lies ready, with its random numbers: the
                    median over the slices, and the least. CPU time, or wall time with a GPU or
                    more than one thread; evaluations, logging and the environment are not in it
    ms per batch    of a batch drawn from the replay buffer: the median
    updates/s       with their batches, one after the other
    GFLOP           of an update's matrix products, counted by torch, in billions
    matrix share    these per second of the update, over what products of square matrices of the
                    best size reach in slices of the same run: 100 % is all that the device can do
    peak MB         memory of the whole process, or what torch took of a GPU
    buffer MB       of the transitions alone
    times ours      the program's time over ours, the median over pairs of slices that lie close in
                    time: of the update alone, and with its batch
"""

import csv
import importlib
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import tyro

from benchmarks.peers import Spec, commit

ROOT = Path(__file__).resolve().parent.parent


class Task(NamedTuple):
    row: str  # of SETTINGS
    obs: int  # numbers of an observation
    act: int  # of an action
    episode: int  # steps of a long episode
    changes: dict = {}  # of the row's settings


ANTMAZE = Task("antmaze", 29, 8, 1000)
TASKS = {
    "pointmaze": Task("pointmaze", 48, 2, 80),
    "antmaze": ANTMAZE,
    "antmaze-no-lagrange": ANTMAZE._replace(changes={"lagrange_gap": None}),
    "door-binary": Task("door-binary", 39, 28, 200),
    "kitchen": Task("kitchen", 60, 9, 280),
}
SCRIPTS = ("iql", "awac", "cql", "cal_ql")
PEERS = {  # the flag that gives it: name in the table, what it has
    "d3rlpy": ("d3rlpy", SCRIPTS),
    "corl": ("CORL", SCRIPTS),
    "calql": ("authors' Cal-QL", ("cql", "cal_ql")),
}
GROWTH = {
    "batch_size": (64, 128, 256, 512, 1024),
    "n_actions": (1, 2, 5, 10, 20),
    "critic_hidden": (64, 128, 256, 512, 1024),  # the width of all layers
    "rows": (10_000, 100_000, 1_000_000, 3_000_000),
}


@dataclass
class Settings:
    scripts: tuple[Literal[SCRIPTS], ...] = ()  # none: all, or with --grow cal_ql
    rows: tuple[Literal[tuple(TASKS)], ...] = ()  # none: all, or with --grow antmaze
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # CPU threads of each program; if more, ours with one is beside it
    bf16: bool = False  # ours with --bf16, and beside it without
    cudagraphs: bool = False  # ours with --cudagraphs, and beside it without; d3rlpy with its own
    change: tuple[str, ...] = ()  # settings of the rows, such as n_actions=4
    slices: int = 5  # that count, of each program
    transitions: int = 10_000  # in the buffer of each program
    seconds: float = 1.0  # of updates in a slice; batches are drawn for a tenth of that
    d3rlpy: str = ""  # the Python of d3rlpy's environment
    corl: str = ""  # checkout of github.com/corl-team/CORL
    calql: str = ""  # checkout of github.com/nakamotoo/Cal-QL
    jax: str = ""  # the Python of its environment
    grow: bool = False  # ours alone, one setting after the other varied
    out: Path | None = None  # folder for throughput.md and .csv, or growth.md and .csv


def fail(problem: str) -> NoReturn:
    print(f"throughput: {problem}", file=sys.stderr)
    sys.exit(2)


def check(good: object, problem: str) -> None:
    if not good:
        fail(problem)


def check_settings(settings: Settings) -> None:
    check(settings.seconds > 0, "--seconds: must be above 0")
    for name in ("slices", "threads", "transitions"):
        check(getattr(settings, name) >= 1, f"--{name}: must be at least 1")
    for name in ("d3rlpy", "jax"):
        python = getattr(settings, name)
        check(not python or shutil.which(python), f"--{name} {python}: not found")
    for name, file in {"corl": "algorithms/finetune", "calql": "JaxCQL/model.py"}.items():
        folder = getattr(settings, name)
        missing = f"--{name} {folder}: is no checkout, {file} is missing"
        check(not folder or Path(folder, file).exists(), missing)
    check(bool(settings.calql) == bool(settings.jax), "--calql and --jax go together")
    if settings.device == "cuda":
        import torch

        check(torch.cuda.is_available(), "--device cuda: torch finds no GPU")
    graphs = settings.cudagraphs and settings.device != "cuda"
    check(not graphs, "--cudagraphs: needs --device cuda")


# ---- One program ---------------------------------------------------------------------------------


@dataclass
class Worker:
    """A program in its process, from `with` on, and what was measured."""

    name: str  # in the table
    python: str
    spec: Spec
    setting: str = ""  # what --grow varies
    updates: list[float] = field(default_factory=list)  # seconds of an update, for each slice
    batches: list[float] = field(default_factory=list)  # of drawing a batch
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)

    def __enter__(self) -> "Worker":
        command = [self.python, "-m", "benchmarks.peers", json.dumps(asdict(self.spec))]
        self.errors = tempfile.TemporaryFile("w+")
        pipe = subprocess.PIPE
        streams = {"stdin": pipe, "stdout": pipe, "stderr": self.errors, "text": True}
        # In a session of its own: a Ctrl-C reaches this program alone, which then ends the others.
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, line: str) -> dict:
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended: there is no answer
        return self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-8:]
            said = "\n".join(last) or "nothing was said"
            fail(f"{self.name}, {self.spec.script}: the process ended, status {status}: {said}")
        return json.loads(line)

    def time(self, task: str, seconds: float) -> float:
        """Seconds that one of many takes."""
        answer = self.ask(f"{task} {seconds}")
        return answer["seconds"] / answer["n"]

    def take_slice(self, seconds: float) -> None:
        self.updates.append(self.time("update", seconds))
        if self.spec.program != "matrix":
            self.batches.append(self.time("batch", seconds / 10))


def turns(workers: list[Worker], slices: int) -> Iterator[list[Worker]]:
    """In which order they take each slice: forward, then backward, with one more to warm up."""
    for k in range(slices + 1):
        yield workers[::-1] if k % 2 else workers


def measure(workers: list[Worker], settings: Settings) -> None:
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            worker.versions = worker.answer()["versions"]
        for order in turns(workers, settings.slices):
            for worker in order:
                worker.take_slice(settings.seconds)
        for worker in workers:
            del worker.updates[:1], worker.batches[:1]
            worker.facts = worker.ask("facts")


# ---- What is measured ----------------------------------------------------------------------------


def parse_change(text: str) -> tuple[str, object]:
    """NAME=VALUE, where the value is JSON or a word."""
    name, equals, value = text.partition("=")
    check(name and equals, f"--change {text}: must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def wall(settings: Settings) -> bool:
    """Whether wall time is measured: CPU time would add up that of several threads."""
    return settings.device != "cpu" or settings.threads > 1


def spec_of(script: str, task: Task, settings: Settings, **changes) -> Spec:
    """Ours, with the settings of the task's row and the given ones."""
    module = importlib.import_module(script)
    changes = dict(map(parse_change, settings.change)) | changes
    changes |= {"device": settings.device, "threads": settings.threads}
    changes["buffer_size"] = 1  # of online rows there are none
    try:
        args = module.Args(**module.SETTINGS[task.row] | task.changes | changes)
    except (TypeError, ValueError) as error:
        fail(f"{script}: {str(error).removeprefix('Args.__init__() ')}")
    shape = {"obs": task.obs, "act": task.act, "episode": task.episode}
    machine = {"device": settings.device, "threads": settings.threads, "wall": wall(settings)}
    return Spec("ours", script, asdict(args), rows=settings.transitions, **shape, **machine)


def fits(script: str, task: Task) -> bool:
    """A script without a setting that the task changes is measured with the row as it is alone."""
    return all(hasattr(importlib.import_module(script).Args, name) for name in task.changes)


def matrix_workers(spec: Spec) -> list[Worker]:
    """The device's rate in float32 and, where it is used, in bfloat16."""
    bf16 = spec.settings.get("bf16", False)
    return [
        Worker("matrix", sys.executable, replace(spec, program="matrix", settings={"bf16": x}))
        for x in ([False, True] if bf16 else [False])
    ]


def side_by_side(script: str, task: Task, settings: Settings) -> list[Worker]:
    """Ours, ours without its flags, the others, and the device."""
    flags = [name for name in ("bf16", "cudagraphs") if getattr(settings, name)]
    plain = spec_of(script, task, settings)
    spec = spec_of(script, task, settings, **{name: True for name in flags})
    workers = [Worker(" ".join(["ours", *flags]), sys.executable, spec)]
    if flags:
        workers.append(Worker("ours", sys.executable, plain))
    if settings.threads > 1:
        workers.append(Worker("ours, one thread", sys.executable, replace(plain, threads=1)))
    pythons = {"d3rlpy": settings.d3rlpy, "calql": settings.jax}
    pythons["corl"] = sys.executable if settings.corl else ""
    for peer, (name, scripts) in PEERS.items():
        if pythons[peer] and script in scripts:
            folder = "" if peer == "d3rlpy" else str(Path(getattr(settings, peer)).resolve())
            own = spec if peer == "d3rlpy" else plain  # which knows of cudagraphs
            workers.append(Worker(name, pythons[peer], replace(own, program=peer, folder=folder)))
    return workers + matrix_workers(spec)


def grown(script: str, task: Task, settings: Settings, name: str) -> list[Worker]:
    """Ours with each value of a setting; none if the script does not have it."""
    flags = {flag: True for flag in ("bf16", "cudagraphs") if getattr(settings, flag)}
    base, workers = spec_of(script, task, settings, **flags), []
    if name != "rows" and name not in base.settings:
        return []
    narrowest = 256 if settings.bf16 and name == "critic_hidden" else 0
    for value in (value for value in GROWTH[name] if value >= narrowest):
        if name == "rows":
            spec = replace(base, rows=value)
        else:
            wide = name == "critic_hidden"
            given = (value,) * len(base.settings[name]) if wide else value
            spec = spec_of(script, task, settings, **flags, **{name: given})
        workers.append(Worker("ours", sys.executable, spec, f"{name} {value:,}"))
    return workers + matrix_workers(base)


def all_rows(settings: Settings) -> tuple[str, ...]:
    """But for those whose networks are too narrow for --bf16."""
    return tuple(row for row in TASKS if row != "pointmaze" or not settings.bf16)


def groups(settings: Settings) -> Iterator[tuple[str, list[Worker]]]:
    """What is measured in turn, with the name of its row of settings."""
    scripts = settings.scripts or (("cal_ql",) if settings.grow else SCRIPTS)
    rows = settings.rows or (("antmaze",) if settings.grow else all_rows(settings))
    for row in rows:
        for script in scripts:
            if not fits(script, TASKS[row]):
                continue
            if not settings.grow:
                yield row, side_by_side(script, TASKS[row], settings)
                continue
            for name in GROWTH:
                if workers := grown(script, TASKS[row], settings, name):
                    yield row, workers


# ---- Tables --------------------------------------------------------------------------------------

COLUMNS = {  # of the table: title and form
    "script": ("script", "`{}`"),
    "row": ("settings", "{}"),
    "setting": ("varied", "{}"),
    "program": ("program", "{}"),
    "update_ms": ("ms per update", "{:.2f}"),
    "update_ms_least": ("least", "{:.2f}"),
    "batch_ms": ("ms per batch", "{:.3f}"),
    "updates_per_s": ("updates/s", "{:.2f}"),
    "gflop": ("GFLOP", "{:.3g}"),
    "matrix_share": ("matrix share", "{:.0%}"),
    "peak_mb": ("peak MB", "{:.0f}"),
    "buffer_mb": ("buffer MB", "{:.1f}"),
    "times_update": ("times ours: update", "{:.2f}"),
    "times_step": ("with its batch", "{:.2f}"),
}


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median over pairs of slices, which lie close in time."""
    return statistics.median(x / y for x, y in zip(theirs, ours))


def results(row: str, workers: list[Worker], grow: bool) -> list[dict]:
    """A row of the table for each program, the first of which is ours."""
    programs = [worker for worker in workers if worker.spec.program != "matrix"]
    rates = {
        worker.spec.settings["bf16"]: worker.facts["flops"] / statistics.median(worker.updates)
        for worker in workers
        if worker.spec.program == "matrix"
    }
    found = []
    for worker in programs:
        result = {"script": worker.spec.script, "row": row, "setting": worker.setting}
        result |= {"program": worker.name, "device": worker.spec.device} | costs(worker)
        bf16 = worker.spec.program == "ours" and worker.spec.settings.get("bf16", False)
        result["matrix_gflops"] = rates[bf16] / 1e9
        if flops := worker.facts.get("flops"):
            share = flops / statistics.median(worker.updates) / rates[bf16]
            result |= {"gflop": flops / 1e9, "matrix_share": share}
        if not grow:
            steps, own_steps = whole_steps(worker), whole_steps(programs[0])
            result["times_update"] = ratio(worker.updates, programs[0].updates)
            result["times_step"] = ratio(steps, own_steps)
        elif "buffer" in worker.facts:
            result["buffer_mb"] = worker.facts["buffer"] / 1e6
        result["slices_ms"] = " ".join(f"{1000 * x:.4g}" for x in worker.updates)
        found.append(result)
    return found


def whole_steps(worker: Worker) -> list[float]:
    return [update + batch for update, batch in zip(worker.updates, worker.batches)]


def costs(worker: Worker) -> dict[str, float]:
    return {
        "update_ms": 1000 * statistics.median(worker.updates),
        "update_ms_least": 1000 * min(worker.updates),
        "batch_ms": 1000 * statistics.median(worker.batches),
        "updates_per_s": 1 / statistics.median(whole_steps(worker)),
        "peak_mb": worker.facts["memory"] / 1e6,
    }


def columns(grow: bool) -> dict[str, tuple[str, str]]:
    left_out = {"program", "times_update", "times_step"} if grow else {"setting", "buffer_mb"}
    return {key: column for key, column in COLUMNS.items() if key not in left_out}


def line_of(result: dict, grow: bool) -> str:
    cells = [
        form.format(result[key]) if key in result else ""
        for key, (_, form) in columns(grow).items()
    ]
    return f"| {' | '.join(cells)} |"


def head(grow: bool) -> str:
    titles = [title for title, _ in columns(grow).values()]
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"


# ---- The record ----------------------------------------------------------------------------------


def spell_command(argv: list[str]) -> str:
    """The command line, without the folders in which something lies on this machine."""
    words = [re.sub(r"[^=]*/", "", word) for word in argv]
    return shlex.join(["python", "-m", "benchmarks.throughput", *words])


def hardware(device: str) -> str:
    import torch

    described = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"model name\s*: (.*)", described) or [platform.machine()]
    vectors = torch.backends.cpu.get_cpu_capability()
    text = f"{names[0]}, {os.cpu_count()} cores, {vectors}"
    if device == "cpu":
        return f"{text}; no GPU is used"
    major, minor = torch.cuda.get_device_capability()
    return f"{text}; {torch.cuda.get_device_name()}, capability {major}.{minor}"


def header(argv: list[str], settings: Settings) -> dict[str, str]:
    """What is known before anything is measured."""
    clock = "wall time" if wall(settings) else "CPU time"
    slices = f"slices: {settings.slices} of {settings.seconds:g} s, {clock}"
    return {
        "command": spell_command(argv),
        "commit": commit(str(ROOT)),
        "hardware": hardware(settings.device),
        "measured": f"{slices}, threads: {settings.threads}, transitions: {settings.transitions:,}",
    }


def all_versions(workers: list[Worker]) -> dict[str, str]:
    """The versions of each program, once."""
    named = {w.name: w.versions for w in workers if w.spec.program not in ("ours", "matrix")}
    named = {"ours": workers[0].versions} | named
    return {
        f"versions, {program}": ", ".join(f"{name} {version}" for name, version in found.items())
        for program, found in named.items()
    }


def show(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        print(f"- {name}: {value}")


def write(folder: Path, facts: dict[str, str], found: list[dict], grow: bool) -> None:
    """The table as Markdown and all numbers as CSV, each below the header."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("growth" if grow else "throughput")
    described = [f"{name}: {value}" for name, value in facts.items()]
    lines = [*(f"- {line}" for line in described), "", head(grow)]
    lines += [line_of(result, grow) for result in found]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    names = list(dict.fromkeys(name for result in found for name in result))
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        file.writelines(f"# {line}\n" for line in described)
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(found)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    settings = tyro.cli(Settings, args=argv, description=__doc__)
    check_settings(settings)
    planned = list(groups(settings))  # which refuses what is wrong in them
    facts, found, everyone = header(argv, settings), [], []
    show(facts)
    print(f"\n{head(settings.grow)}", flush=True)
    for row, workers in planned:
        measure(workers, settings)
        everyone += workers
        for result in results(row, workers, settings.grow):
            found.append(result)
            print(line_of(result, settings.grow), flush=True)
        if settings.out:
            write(settings.out, facts | all_versions(everyone), found, settings.grow)
    print()
    show(all_versions(everyone))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # the processes have ended
