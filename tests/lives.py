"""Lives of a run: children that call a script's main and may be ended at an exact moment.

A child that kills itself with SIGKILL leaves on the disk what a kill from outside leaves there.
The children come from a server that has imported torch already.
"""

import functools
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from conftest import quick, read_checkpoint, read_events, same_bits
from scripts import load_script
from tensorboard.summary.writer import event_file_writer
from toy import Toy

LOG_EVERY = 10  # so that rows of training metrics fall on the steps of evaluations, and between
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    # The last is imported by the first optimiser that a process makes; it takes a second.
    ["torch.utils.tensorboard", "gymnasium", "h5py", "tyro", "filelock", "pytest", "torch._dynamo"]
)


def of_file(name: str):
    """Whether a call of fsync or replace is about this file, given with or without its .tmp."""

    def test(*args) -> bool:
        path = os.readlink(f"/proc/self/fd/{args[0]}") if len(args) == 1 else args[1]
        return Path(path).name.removesuffix(".tmp") == name

    return test


def places(module: ModuleType) -> dict[str, tuple]:
    """Where a life can be ended: an owner and the name of its function, and which calls count, if
    not all do."""
    act = module.Agent, "act"
    files = ("args.json", "checkpoint.new", "pretrained.pt", "summary.json")
    renamed = (*files, "checkpoint.pt", "checkpoint.previous")
    return {
        "read": (module, "read_dataset"),
        "update": (module.Agent, "update"),
        "act": act,
        "judge": (*act, lambda agent, obs, generator=None: generator is None),
        "explore": (*act, lambda agent, obs, generator=None: generator is not None),
        "step": (Toy, "step"),
        "row": (module.SummaryWriter, "add_scalar"),
        "close": (module.SummaryWriter, "close"),
        "save": (torch, "save"),
        "sync": (os, "fsync"),
        "rename": (os, "replace"),
        **{f"sync {name}": (os, "fsync", of_file(name)) for name in files},
        **{f"rename {name}": (os, "replace", of_file(name)) for name in renamed},
    }


def watch(module: ModuleType, place: str, number: int, what=KILL, mouth=None) -> None:
    """Before the call of that number, counted from 1, something happens: a signal, an exception,
    or a function is called; a word is told to the parent, and nothing goes on."""
    owner, attribute, *counted = places(module)[place]
    real, calls = getattr(owner, attribute), itertools.count(1)

    def watched(*args, **kwargs):
        if all(test(*args, **kwargs) for test in counted) and next(calls) == number:
            if isinstance(what, signal.Signals):
                os.kill(os.getpid(), what)
            elif isinstance(what, str):
                mouth.send(what)
                signal.pause()
            elif callable(what):
                what()
            else:
                raise what
        return real(*args, **kwargs)

    setattr(owner, attribute, watched)


def live(script: str, line: list[str], folder: Path, moments, tick, log_every, lag, mouth):
    """Body of a child.

    tick: seconds that pass between two looks at the clock, if it is not to be the real one.
    lag: seconds that each row of the log takes to the disk.
    """
    os.chdir(folder)
    sys.stdout = sys.stderr = open("output.txt", "w", 1)  # by lines, so that no kill loses one
    module = load_script(script)
    module.LOG_EVERY, module.draw_curves = log_every, lambda folder: None
    importlib.metadata.distributions = list  # to look for them takes a quarter of a life
    # TensorBoard reads event files in the order of their names, which begin with the second of
    # their making. A real restart takes longer than that; here lives may share one.
    n_lives = len(list(folder.glob("run/events*")))
    event_file_writer.time = SimpleNamespace(time=lambda: time.time() + n_lives)
    if tick:
        module.time = SimpleNamespace(monotonic=itertools.count(0, tick).__next__)
    write = event_file_writer.RecordWriter.write
    event_file_writer.RecordWriter.write = lambda *args: (time.sleep(lag), write(*args))
    for moment in moments:
        watch(module, *moment, mouth=mouth) if len(moment) == 3 else watch(module, *moment)
    mouth.send("begins")
    module.main(line)


def start(script: str, line: list[str], folder: Path, *moments, tick=0, log_every=LOG_EVERY, lag=0):
    """Begins a life: the child, which is heard at its `ear`."""
    ear, mouth = SERVER.Pipe(duplex=False)
    how = moments, tick, log_every, lag, mouth
    child = SERVER.Process(target=live, args=(script, line, folder, *how))
    child.start()
    child.ear = ear
    return child


def finish(child, folder: Path) -> tuple[int, str]:
    """Waits for the end of a life: its status and what it printed."""
    child.join(300)
    status = child.exitcode
    child.kill()  # if it hangs: the status is None then
    return status, (folder / "output.txt").read_text()


def words_for(line: list[str], folder: Path) -> list[str]:
    """How to begin the run that the line describes, or to go on with it."""
    begun = (folder / "run" / "args.json").exists()
    return ["--resume", "run"] if begun else [*line, "--run-dir", "run"]


def run_life(script: str, line: list[str], folder: Path, *moments, damaged=(), **how) -> str:
    """A life that ends as the first of its moments says; what it printed.

    damaged: the checkpoints that it has to warn of.
    """
    child = start(script, words_for(line, folder), folder, *moments, **how)
    status, output = finish(child, folder)
    print(f"life with {moments}: status {status}")  # shown when a test fails
    what = (*moments[0], KILL)[2] if moments else None
    if what in (None, KILL):
        assert status == (-KILL if moments else 0), output
    elif isinstance(what, signal.Signals):
        check_stopped(script, what.name, status, output, folder / "run")
    else:
        check_note(script, what, status, output, folder / "run")
    warned = [row for row in output.splitlines() if "is damaged" in row]
    assert len(warned) == len(damaged), output
    assert all(f"run/{name} is damaged" in row for name, row in zip(damaged, warned)), output
    return output


def check_stopped(script: str, name: str, status: int, output: str, run_dir: Path) -> None:
    """A signal's end: one line says how to go on, and nothing lies about."""
    assert status == 2 and "Traceback" not in output, output
    check_advice(output.splitlines()[-1], f"{script}.py: stopped: {name}; ", run_dir)


def undisturbed_runs(toy_file: Path, tmp_path_factory) -> Callable[[str], Path]:
    """What gives for each script the folder of a quick run that nobody killed."""

    @functools.cache
    def get(script: str) -> Path:
        folder = tmp_path_factory.mktemp(f"undisturbed-{script}")
        return run_lives(script, quick(script, dataset=toy_file), folder)

    return get


def check_note(script: str, error: Exception, status: int, output: str, run_dir: Path) -> None:
    """The end by an exception of others: their traceback, and then the advice."""
    *_, last, note = output.splitlines()
    assert status == 1 and "Traceback" in output and last.endswith(str(error)), output
    check_advice(note, f"{script}.py: ", run_dir)


def check_advice(line: str, beginning: str, run_dir: Path) -> None:
    step = saved_step(run_dir)
    advice = f"the checkpoint of step {step} is good; continue with --resume run"
    if step is None:
        advice = "no checkpoint yet; --resume run begins again"
    assert line == beginning + advice
    assert not list(run_dir.glob("*.tmp"))


def counters(run_dir: Path) -> dict:
    """Those of the checkpoint from which a run would go on, which is whole whatever happened."""
    for name in ("checkpoint.pt", "checkpoint.previous"):
        if (run_dir / name).exists():
            return read_checkpoint(run_dir, name)["run"]
    return {"updates": 0, "episodes": 0}


def progress(run_dir: Path) -> int:
    """How much is saved: gradient steps and episodes, which never become fewer."""
    found = counters(run_dir)
    return found["updates"] + found["episodes"]


def saved_step(run_dir: Path) -> int | None:
    """The step that a run would go on from."""
    found = counters(run_dir)
    if "offline_steps" not in found:
        return None
    utd = json.loads((run_dir / "args.json").read_text())["settings"]["utd"]
    return found["offline_steps"] + found["online_steps"] - -(-max(found["updates_due"], 0) // utd)


def run_lives(script: str, line: list[str], folder: Path, lives=(), **how) -> Path:
    """A run with a life for each moment, and one that goes to the end; the run's folder."""
    folder.mkdir(exist_ok=True)
    reached = 0
    for moments in (*([moment] for moment in lives), []):
        run_life(script, line, folder, *moments, **how)
        assert reached <= progress(folder / "run"), "what was saved is lost"
        reached = progress(folder / "run")
    return folder / "run"


def check_same_run(one: Path, other: Path) -> None:
    """Weights, optimisers, counters and online rows; the log, gaps and doubles included."""
    assert same_bits(read_checkpoint(one), read_checkpoint(other))
    pretrained = [read_checkpoint(run_dir, "pretrained.pt") for run_dir in (one, other)]
    assert same_bits(*pretrained)
    expected, found = (read_events(run_dir) for run_dir in (one, other))
    assert expected.keys() == found.keys() and expected
    for key in expected:
        assert same_bits(expected[key], found[key]), f"{key}: {expected[key]}, {found[key]}"
    assert (one / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert not list(other.glob("*.tmp")) and not (other / "checkpoint.new").exists()
