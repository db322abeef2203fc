"""Runs experiments: tasks x scripts x seeds x named conditions, as many runs at once as fit.

    python -m benchmarks.experiment                              says which experiments there are
    python -m benchmarks.experiment pointmaze                    all runs of one
    python -m benchmarks.experiment pointmaze --scripts cql cal_ql --seeds 0 1 --jobs 2

conditions.py says what an experiment consists of. Runs lie in --runs/<experiment>/, beside each its
output in a .log. Ctrl-C or SIGTERM ends them so that they save; the same command goes on: what has
a row in --results/<experiment>/runs.csv or has finished is kept, what was interrupted is continued.
A run that fails is shown with its last lines and tried once more, and the others go on. Each run
that finishes gets its row, and its curves beside it. Then `python -m benchmarks.report`.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import filelock
import tyro
from tqdm import tqdm

from benchmarks import plot
from benchmarks.conditions import COLLECTED, EXPERIMENTS, Condition, Experiment
from benchmarks.records import (
    EVALUATED,
    KEY,
    file_of,
    key_of,
    merge_rows,
    read_rows,
    slug,
    write_curves,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco")
TRIES = 2
LAST_LINES = 8  # of a failed run's output
GIB = 2**30


@dataclass
class Args:
    names: tyro.conf.Positional[tuple[str, ...]] = ()  # experiments
    conditions: tuple[str, ...] = ()  # of those that an experiment has; without any, all
    scripts: tuple[str, ...] = ()  # likewise
    tasks: tuple[str, ...] = ()  # likewise
    seeds: tuple[int, ...] = ()  # likewise
    jobs: int | None = None  # runs at once; None: a core each, fewer if memory is short
    runs: Path = Path("runs", "experiment")  # folder of the runs
    results: Path = Path("benchmarks", "results")  # folder of the records


def fail(problem: str) -> NoReturn:
    """One clear line and status 2."""
    print(f"experiment: {problem}", file=sys.stderr)
    sys.exit(2)


# --- What is to be run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run, or the pre-training that several runs share."""

    condition: str
    script: str
    task: str
    seed: int
    flags: str
    runs: Path  # folder of the experiment's runs
    warmup: int = 0
    pretraining: "Job | None" = None  # what it begins with

    @property
    def folder(self) -> Path:
        name = f"{self.script}-{Path(self.task).stem}-s{self.seed}"
        return self.runs / slug(self.condition) / name

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def file(self, ending: str) -> Path:
        """Beside the run's folder: its output, and what is known of its lives."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")

    def key(self) -> dict[str, str]:
        values = (self.condition, self.script, Path(self.task).stem, str(self.seed))
        return dict(zip(KEY, values))

    def start(self) -> list[str]:
        if self.warmup:
            return ["-m", "benchmarks.warmup", str(self.warmup), self.script]
        return [f"{self.script}.py"]

    def words(self) -> list[str]:
        """What begins the run, but for its folder."""
        origin = dataset_flags(self.task, self.runs.parent)
        if self.pretraining:
            origin = ["--pretrained", relative(self.pretraining.folder)]
        return [*self.start(), "--seed", str(self.seed), *origin, *shlex.split(self.flags)]

    def command(self) -> list[str]:
        """What begins it or goes on with it, in ROOT."""
        folder = str(self.folder.resolve())
        if (self.folder / "args.json").exists():
            return [sys.executable, *self.start(), "--resume", folder]
        return [sys.executable, *self.words(), "--run-dir", folder]


def relative(path: Path) -> str:
    """As seen from ROOT, if it lies in there."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def collected_file(task: str, runs: Path) -> Path:
    return runs / f"pointmaze-{task}.hdf5"


def dataset_flags(task: str, runs: Path) -> list[str]:
    if task not in COLLECTED:
        return ["--dataset", task]
    return ["--dataset", relative(collected_file(task, runs))] if COLLECTED[task] else []


def jobs_of(experiment: Experiment, args: Args, runs: Path) -> list[Job]:
    """Those that the arguments leave, the first seeds of all conditions before the next ones."""
    found = []
    for name, condition in chosen(args.conditions, experiment.conditions).items():
        seeds = condition.seeds or experiment.seeds
        scripts = chosen(args.scripts, condition.scripts or experiment.scripts)
        tasks = chosen(args.tasks, condition.tasks or experiment.tasks)
        for seed, task, script in itertools.product(chosen(args.seeds, seeds), tasks, scripts):
            job = make_job(name, condition, (script, task, seed), runs)
            found.append((seeds.index(seed), job))
    return [job for _, job in sorted(found, key=lambda pair: pair[0])]


def chosen(wanted, existing):
    """What is wanted of what exists, of both a dict or a sequence; all if nothing is said."""
    kept = [name for name in existing if not wanted or name in wanted]
    return {name: existing[name] for name in kept} if isinstance(existing, dict) else kept


def check_asked_for(name: str, jobs: list[Job], args: Args) -> None:
    """A word that selects nothing is a mistake."""
    for column in KEY:
        there = {getattr(job, column) for job in jobs}
        asked = getattr(args, f"{column}s")
        if missing := [str(word) for word in asked if word not in there]:
            fail(f"{name}: no runs with --{column}s {' '.join(missing)} in what was asked for")


def make_job(name: str, condition: Condition, run: tuple[str, str, int], runs: Path) -> Job:
    if condition.online is None:
        return Job(name, *run, condition.flags, runs, condition.warmup)
    if "--online-steps" not in condition.online:  # the shared run has 0, and these begin with that
        raise ValueError(f"{name}: its online flags must have --online-steps")
    shared = f"{condition.flags} --online-steps 0".strip()
    pretraining = Job(f"pretraining {condition.flags}".strip(), *run, shared, runs)
    return Job(name, *run, condition.online, runs, condition.warmup, pretraining)


def check_same_command(jobs: list[Job], rows: dict) -> None:
    """A condition whose flags were changed would mix two experiments under one name."""
    for job in jobs:
        command = shlex.join(["python", *job.words()])
        row = rows.get(tuple(job.key().values()), {})
        begun = read_lives(job) if (job.folder / "args.json").exists() else {}
        before = row.get("command") or begun.get("command") or command
        if before != command:
            remedy = "give the new one another name, or delete the old run and its row"
            fail(f"{job.name} was made by `{before}`, now it is `{command}`; {remedy}")


def prepare_datasets(tasks: set[str], runs: Path) -> None:
    for task in sorted(tasks & COLLECTED.keys()):
        path = collected_file(task, runs)
        if COLLECTED[task] and not path.exists():
            runs.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            collect = ["-m", "benchmarks.data.collect_pointmaze", *shlex.split(COLLECTED[task])]
            command = [sys.executable, *collect, "--out", str(part.resolve())]
            subprocess.run(command, check=True, cwd=ROOT)
            part.replace(path)


# --- Running it -----------------------------------------------------------------------------------


class Children:
    """The processes of runs. Signals end them all, and then none is started any more.

    They do not get the terminal's Ctrl-C themselves: a second signal would keep them from saving.
    """

    def __init__(self):
        self.running, self.stopped, self.lock = set(), False, threading.Lock()

    def run(self, command: list[str], log: Path) -> int | None:
        """Its status; None if it was not started."""
        with open(log, "a") as output:
            with self.lock:
                if self.stopped:
                    return None
                streams = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=output)
                child = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)
                self.running.add(child)
            status = child.wait()
        with self.lock:
            self.running.remove(child)
        return status

    def receive(self, number: int, frame) -> None:
        with self.lock:
            self.stopped = True
            for child in self.running:
                child.send_signal(number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM go to the children."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.receive) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before):
                signal.signal(number, handler)


def read_lives(job: Job) -> dict:
    path = job.file("json")
    return json.loads(path.read_text()) if path.exists() else {}


def write_lives(job: Job, **known) -> None:
    part = job.file("json.part")
    part.write_text(json.dumps(known))
    part.replace(job.file("json"))


def live(job: Job, children: Children, at_once: int) -> int | None:
    """One life of a run, and how long it took: its status, None if it was not started."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    lives, command = read_lives(job), shlex.join(["python", *job.words()])
    seconds = lives.get("seconds", 0.0)
    if lives.get("alive"):
        seconds = None  # nobody saw how long the last one took
    known = dict(command=command, at_once=max(at_once, lives.get("at_once", 0)))
    write_lives(job, **known, seconds=seconds, alive=True)
    began = time.monotonic()
    status = children.run(job.command(), job.file("log"))
    if seconds is not None:
        seconds = round(seconds + time.monotonic() - began, 2)
    write_lives(job, **known, seconds=seconds, alive=False)
    return status


def do(job: Job, before: Future | None, children: Children, at_once: int) -> bool:
    """Runs a job to its end, whatever it takes; whether it has finished."""
    if before is not None and not before.result():
        if not children.stopped:
            say(f"{job.name}: not run, its pre-training failed")
        return False
    for k in range(1, TRIES + 1):
        if job.finished or children.stopped:
            break
        status = live(job, children, at_once)
        if not job.finished and not children.stopped:
            last = last_lines(job.file("log"))
            how = f"failed with status {status}, try {k} of {TRIES}"
            say(f"{job.name}: {how}, its last lines:\n{last}")
    return job.finished


def say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join(f"    {line}" for line in lines)


def progress_of(job: Job) -> float:
    """The share of a run's steps that are done, by the evaluations in its output, from 0 to 1."""
    log = job.file("log")
    text = log.read_text(errors="replace") if log.exists() else ""
    found = re.findall(r"(?m)^o(?:ff|n)line +(\d+)/(\d+) ", text)
    if not found:
        return 0.0
    first, last, end = int(found[0][0]), int(found[-1][0]), int(found[-1][1])
    return min(max(last - first, 0) / max(end - first, 1), 1.0)


def run_all(jobs: list[Job], at_once: int, children: Children) -> Iterator[tuple[Job, bool]]:
    """Each job as soon as it ended, and whether it has finished."""
    shared = dict.fromkeys(job.pretraining for job in jobs if job.pretraining)
    total = len(shared) + len(jobs)
    with ThreadPoolExecutor(at_once) as pool, tqdm(total=total, unit="run", disable=None) as bar:
        # Pre-trainings are submitted first, so whoever waits for one waits for a running one.
        first = {job: pool.submit(do, job, None, children, at_once) for job in shared}
        then = {
            job: pool.submit(do, job, first.get(job.pretraining), children, at_once) for job in jobs
        }
        job_of = {future: job for job, future in (first | then).items()}
        waiting = set(job_of)
        while waiting:
            ended, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            under_way = sum(progress_of(job_of[x]) for x in waiting if x.running())
            bar.n = round(total - len(waiting) + under_way, 2)
            bar.refresh()
            yield from ((job_of[future], future.result()) for future in ended)


# --- The records ----------------------------------------------------------------------------------


def row_of(job: Job) -> dict:
    """What is recorded of a finished run."""
    summary, record = (
        json.loads((job.folder / f"{name}.json").read_text()) for name in ("summary", "args")
    )
    lives, packages = read_lives(job), record["packages"]
    row = job.key() | {"dip": summary["after"].get("dip"), "regret": summary["after"].get("regret")}
    for key, when in itertools.product(EVALUATED, ("before", "after")):
        row[f"{key}_{when}"] = summary[when].get(key)
    versions = [f"{name} {packages[name]}" for name in PACKAGES if name in packages]
    cores, instructions, gpu = record["hardware"]
    row["command"], row["at_once"] = lives.get("command"), lives.get("at_once")
    row["commit"], row["seconds"] = record["commit"], lives.get("seconds")
    row["versions"] = ", ".join([f"python {record['python'].split()[0]}", *versions])
    row["hardware"] = f"{cores} cores, {instructions}, {gpu}"
    row["pretraining_seconds"] = job.pretraining and read_lives(job.pretraining).get("seconds")
    return {name: "" if value is None else value for name, value in row.items()}


def save_record(job: Job, results: Path, conditions: list[str]) -> bool:
    """Whether that was possible; a run whose files are damaged does not harm the others."""
    try:
        row = row_of(job)
        write_curves(file_of(row, results), plot.read_run(job.folder).scalars)
        merge_rows(results, [row], conditions)
    except (Exception, SystemExit) as error:  # plot.py ends with a line of its own
        say(f"{job.name}: cannot be recorded ({type(error).__name__}: {error})")
        return False
    score = f"score {row['score_before']:.2f} before, {row['score_after']:.2f} at the end"
    say(f"{job.name}: done in {row['seconds'] or '?'} s, {score}")
    return True


# --- The program ----------------------------------------------------------------------------------


def fitting_jobs(memory: float) -> int:
    """How many runs, of so many GiB each, the machine carries at once."""
    cores = os.cpu_count() or 1
    with contextlib.suppress(OSError):  # Linux alone has this file
        text = Path("/proc/meminfo").read_text()
        available = int(re.search(r"MemAvailable: +(\d+) kB", text)[1]) * 1024 / GIB
        return max(1, min(cores, int(available / memory)))
    return cores


def run_experiment(name: str, experiment: Experiment, args: Args, children: Children) -> list[str]:
    """The names of runs that have not finished."""
    runs, results = args.runs / name, args.results / name
    jobs = jobs_of(experiment, args, runs)
    check_asked_for(name, jobs, args)
    rows = {key_of(row): row for row in read_rows(results)}
    check_same_command(jobs, rows)
    todo = [job for job in jobs if tuple(job.key().values()) not in rows]
    print(f"{name}: {len(jobs)} runs, {len(jobs) - len(todo)} of them recorded", flush=True)
    prepare_datasets({job.task for job in todo}, args.runs)
    at_once, missing = args.jobs or fitting_jobs(experiment.memory), []
    for job, good in run_all(todo, at_once, children):
        if not good:
            missing.append(job.name)
        elif job not in todo:  # what others share
            say(f"{job.name}: done")
        elif not save_record(job, results, list(experiment.conditions)):
            missing.append(job.name)
    return missing


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second call from running the same experiment beside this one."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        fail(f"{folder}: another call is at work there")
    try:
        yield
    finally:
        lock.release()


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.names or set(args.names) - EXPERIMENTS.keys():
        fail(f"give names of experiments; there are {', '.join(EXPERIMENTS)}")
    args.runs, args.results = ((ROOT / path).absolute() for path in (args.runs, args.results))
    children, missing = Children(), []
    for name in args.names:
        with locked(args.runs / name), children.listening():
            if not children.stopped:
                missing += run_experiment(name, EXPERIMENTS[name], args, children)
    if children.stopped:
        fail("stopped; the same command goes on")
    if missing:
        print(f"not finished: {', '.join(missing)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
