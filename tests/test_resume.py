"""A run that is killed and continued, at any moment and as often as you like, ends with the same
bits and the same log as one that was left alone.

Most lives are children of a server that has imported torch already, and kill themselves with
SIGKILL at an exact moment: what is then on the disk is what a kill from outside leaves there.
"""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import N_SMALL, quick, read_checkpoint, read_events, run_script, same_bits
from scripts import ROOT, load_script
from tensorboard.summary.writer import event_file_writer

ONE = "cql"  # for what lies in Part II alone
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    # The last one is imported by the first optimiser that a process makes; it takes a second.
    ["torch.utils.tensorboard", "gymnasium", "h5py", "tyro", "filelock", "pytest", "torch._dynamo"]
)


def live(script: str, line: list[str], folder: Path, moment: tuple[str, int] | None, hurry: bool):
    """Body of a child: runs a script, until the given call of a function that a moment names.

    hurry: a minute passes between two looks at the clock, so every step is saved.
    """
    os.chdir(folder)
    sys.stdout = sys.stderr = open(folder / "output.txt", "a")
    module = load_script(script)
    module.HERE = folder
    sys.argv = [f"{script}.py", *line]
    # TensorBoard reads event files in the order of their names, which begin with the second of
    # their making. A real restart takes longer than that; here lives may share one.
    n_lives = len(list(folder.glob("run/events*")))
    event_file_writer.time = SimpleNamespace(time=lambda: time.time() + n_lives)
    if hurry:
        module.time = SimpleNamespace(time=itertools.count(0, 100).__next__)
    if moment:
        name, number = moment
        owner, attribute = {
            "update": (module.Agent, "update"),
            "act": (module.Agent, "act"),  # in an evaluation or in the middle of an episode
            "row": (module.SummaryWriter, "add_scalar"),
            "close": (module.SummaryWriter, "close"),
            "save": (torch, "save"),
            "sync": (os, "fsync"),  # a file is half written
            "rename": (os, "replace"),  # a file is written and still has its other name
        }[name]
        real, calls = getattr(owner, attribute), itertools.count(1)

        def last_call(*args, **kwargs):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, attribute, last_call)
    module.main()


def run_lives(script: str, line: list[str], folder: Path, moments=(), hurry=False) -> Path:
    """A run with a life for each moment, and one that goes to the end; the run's folder."""
    run_dir = folder / "run"
    for moment in (*moments, None):
        begun = (run_dir / "args.json").exists()
        words = ["--resume", "run"] if begun else [*line, "--run-dir", "run"]
        child = SERVER.Process(target=live, args=(script, words, folder, moment, hurry))
        child.start()
        child.join(120)
        output = (folder / "output.txt").read_text()
        assert child.exitcode == (-signal.SIGKILL if moment else 0), f"{moment}: {output}"
    return run_dir


@pytest.fixture(scope="module")
def undisturbed(toy_file, tmp_path_factory):
    """For each script the folder of a quick run that nobody killed."""
    folders = {}

    def get(script: str) -> Path:
        if script not in folders:
            folder = tmp_path_factory.mktemp(f"undisturbed-{script}")
            folders[script] = run_lives(script, quick(script, dataset=toy_file), folder)
        return folders[script]

    return get


def assert_same_run(one: Path, other: Path):
    """Weights, optimisers, counters and online rows; the log, gaps and doubles included."""
    assert same_bits(read_checkpoint(one), read_checkpoint(other))
    expected, found = (read_events(run_dir) for run_dir in (one, other))
    assert expected.keys() == found.keys() and expected
    for key in expected:
        assert same_bits(expected[key], found[key]), f"{key}: {expected[key]}, {found[key]}"
    assert (one / "summary.json").read_bytes() == (other / "summary.json").read_bytes()


# With QUICK's settings: evaluations, and with them checkpoints, after 0, 50, 100 and 120 updates,
# then every 20 steps, after the episode. The first file that is written is args.json.
MOMENTS = {
    "before there are settings": [("rename", 1)],
    "in the first evaluation": [("act", 5)],
    "among the first rows of the log": [("row", 2)],
    "before the first checkpoint": [("save", 1)],
    "in the first checkpoint": [("sync", 2)],
    "before its renaming": [("rename", 2)],
    "first update": [("update", 1)],
    "offline": [("update", 77)],
    "in a later checkpoint": [("sync", 4)],
    "before a later renaming": [("rename", 4)],
    "last offline update": [("update", 120)],
    "first online update": [("update", 121)],
    "in the first online episode": [("update", 121), ("act", 2)],
    "online": [("update", 165)],
    "among later rows": [("update", 101), ("row", 9)],
    "at the very end": [("close", 1)],
    "twice at the same place": [("update", 60), ("update", 10), ("update", 10)],
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_once(undisturbed, toy_file, tmp_path, moment):
    run_dir = run_lives(ONE, quick(ONE, dataset=toy_file), tmp_path, MOMENTS[moment])
    assert_same_run(undisturbed(ONE), run_dir)


def test_killed_all_the_time(undisturbed, toy_file, tmp_path, script):
    """Every script: schedules and optimisers of its own have to come back too."""
    moments = [("act", 3), ("update", 20), ("update", 60), ("rename", 1), ("update", 45)]
    moments += [("act", 4), ("update", 9), ("row", 8), ("update", 30), ("close", 1)]
    run_dir = run_lives(script, quick(script, dataset=toy_file), tmp_path, moments)
    assert_same_run(undisturbed(script), run_dir)


def test_killed_between_evaluations(undisturbed, toy_file, tmp_path, script):
    """Saved at every step, as a slow run is every minute: also with half an episode's updates
    still due. How often a run is saved shows in nothing that it computes."""
    moments = [("update", 30), ("update", 71), ("update", 23), ("update", 3), ("act", 2)]
    moments += [("update", 1), ("update", 2), ("rename", 5), ("sync", 7), ("update", 12)]
    run_dir = run_lives(script, quick(script, dataset=toy_file), tmp_path, moments, hurry=True)
    assert_same_run(undisturbed(script), run_dir)


OTHER_SETTINGS = [
    ("cql", dict(offline_share=-1)),
    ("cql", dict(buffer_size=25)),  # a ring of online rows, which overwrites itself twice
    ("cql", dict(utd=3)),
    ("cql", dict(offline_steps=0)),
    # One buffer of both, as AWAC's paper has it. It ends after 35 online rows, and goes on over
    # the dataset; or it ends with the dataset, and goes on over that and then over its own rows.
    ("awac", dict(buffer_size=N_SMALL + 35)),
    ("awac", dict(buffer_size=1)),
    # Of a std for good, a parameter that is not trained, the optimiser keeps no state.
    ("iql", dict(dropout=0.3, fixed_log_std=-1.0)),
]


@pytest.mark.parametrize("script, settings", OTHER_SETTINGS, ids=str)
def test_killed_with_other_settings(small_file, tmp_path, script, settings):
    """A ring that spans the dataset or has begun to overwrite itself, several updates a step."""
    line = quick(script, dataset=small_file, **settings)
    folders = [tmp_path / "alone", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    alone = run_lives(script, line, folders[0])
    moments = [("update", 25), ("act", 4), ("update", 9), ("update", 7)]
    if "buffer_size" in settings:  # late in the online phase, when it has gone round
        moments += [("update", 98), ("act", 3), ("update", 12)]
    assert_same_run(alone, run_lives(script, line, folders[1], moments, hurry=True))


def test_killed_from_outside(undisturbed, toy_file, tmp_path):
    """As a user would have it: processes of their own, killed at moments that nobody chose, and
    continued from other working directories."""
    line = quick(ONE, dataset=os.path.relpath(toy_file, tmp_path), run_dir="run")
    chance = random.Random(ONE)
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / f"{ONE}.py"), *line],
            cwd=tmp_path / str(k) if k else tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2):  # lines: the settings, the first evaluation; far from the end
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before: make the run longer"
        line = ["--resume", str(tmp_path / "run")]
        if k == 0:
            settings = (tmp_path / "run" / "args.json").read_bytes()
            (tmp_path / "run" / "checkpoint.tmp").write_bytes(b"half a che")
    done = run_script(ROOT / f"{ONE}.py", *line, "--device=cpu", cwd=tmp_path / "0")
    assert done.status == 0, done.stderr
    assert_same_run(undisturbed(ONE), tmp_path / "run")
    assert (tmp_path / "run" / "args.json").read_bytes() == settings, "a resume changes nothing"
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_resume_of_a_finished_run(undisturbed, toy_file, tmp_path):
    """Is harmless: nothing is trained, nothing changes."""
    run_dir = run_lives(ONE, quick(ONE, dataset=toy_file), tmp_path)
    before = (run_dir / "checkpoint.pt").read_bytes()
    assert run_lives(ONE, [], tmp_path) == run_dir  # there is an args.json: --resume
    assert (run_dir / "checkpoint.pt").read_bytes() == before
    assert_same_run(undisturbed(ONE), run_dir)
