"""A run that is killed and continued, at any moment and as often as you like, ends with the same
bits and the same log as one that was left alone. So does one that a signal ends, whose checkpoint
is damaged, or that another run would have liked to take the place of.

Most lives are children of a server that has imported torch already, and kill themselves with
SIGKILL at an exact moment: what is then on the disk is what a kill from outside leaves there.
What is drawn at random goes by --chance; with --long there are more kills.
"""

import ast
import hashlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import N_SMALL, quick, read_checkpoint, read_events, same_bits
from scripts import ROOT, load_script, text_of
from tensorboard.summary.writer import event_file_writer
from toy import Toy

ONE = "cql"  # for what lies in Part II alone
LOG_EVERY = 10  # so that rows of training metrics fall on the steps of evaluations, and between
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    # The last three are imported late in a run, one of them by the first optimiser that a process
    # makes; it takes a second.
    ["torch.utils.tensorboard", "gymnasium", "h5py", "tyro", "filelock", "pytest", "torch._dynamo"]
    + ["typeguard", "tensorboard.backend.event_processing.event_accumulator"]
)

# --- Lives ----------------------------------------------------------------------------------------


def places(module: ModuleType) -> dict[str, tuple]:
    """Where a life can be ended: an owner and the name of its function, and whether a call counts,
    if not all do."""
    act = module.Agent, "act"
    return {
        "start": (module, "read_dataset"),
        "update": (module.Agent, "update"),
        "act": act,  # in an evaluation or in the middle of an episode
        "judge": (*act, lambda agent, obs, generator=None: generator is None),  # in an evaluation
        "explore": (*act, lambda agent, obs, generator=None: generator is not None),
        "step": (Toy, "step"),
        "row": (module.SummaryWriter, "add_scalar"),
        "close": (module.SummaryWriter, "close"),
        "save": (torch, "save"),
        "sync": (os, "fsync"),  # a file is half written
        "rename": (os, "replace"),  # a file is written and still has its other name
    }


def live(script: str, line: list[str], folder: Path, moment, tick, log_every, lag, parent):
    """Body of a child: runs a script as a user's call does, and tells the parent when it trains.

    moment: the call of a place, counted from 1, and what then happens: a signal, by default
    SIGKILL; an exception; or, if it is a word, the parent is told that and nothing goes on.
    tick: seconds that pass between two looks at the clock, if it is not to be the real one.
    lag: seconds that each row of the log takes to the disk.
    """
    os.chdir(folder)
    sys.stdout = sys.stderr = open("output.txt", "w", 1)  # by lines, so that no kill loses one
    module = load_script(script)
    module.HERE, module.LOG_EVERY = folder, log_every
    sys.argv = [f"{script}.py", *line]
    # TensorBoard reads event files in the order of their names, which begin with the second of
    # their making. A real restart takes longer than that; here lives may share one.
    n_lives = len(list(folder.glob("run/events*")))
    event_file_writer.time = SimpleNamespace(time=lambda: time.time() + n_lives)
    if tick:
        module.time = SimpleNamespace(time=itertools.count(0, tick).__next__)
    write = event_file_writer.RecordWriter.write
    event_file_writer.RecordWriter.write = lambda *args: (time.sleep(lag), write(*args))
    train = module.train

    def begin(*args):
        parent.send("trains")
        train(*args)

    module.train = begin
    if moment:
        name, number, what = (*moment, KILL)[:3]
        owner, attribute, *counted = places(module)[name]
        real, calls = getattr(owner, attribute), itertools.count(1)

        def watched(*args, **kwargs):
            if all(test(*args, **kwargs) for test in counted) and next(calls) == number:
                if isinstance(what, str):
                    parent.send(what)
                    signal.pause()
                if not isinstance(what, signal.Signals):
                    raise what
                os.kill(os.getpid(), what)
            return real(*args, **kwargs)

        setattr(owner, attribute, watched)
    last = ast.Module(ast.parse(text_of(script)).body[-1:], [])  # if __name__ == "__main__"
    exec(compile(last, script, "exec"), vars(module) | {"__name__": "__main__"})


def start(
    script: str, line: list[str], folder: Path, moment=None, tick=0, log_every=LOG_EVERY, lag=0
):
    """Begins a life: the child, which is heard at its `ear`."""
    ear, mouth = SERVER.Pipe(duplex=False)
    how = moment, tick, log_every, lag, mouth
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


def run_life(script: str, line: list[str], folder: Path, moment=None, damaged=(), **how) -> int:
    """A life that ends as the moment says; the status. damaged: the checkpoints it warns of."""
    child = start(script, words_for(line, folder), folder, moment, **how)
    status, output = finish(child, folder)
    print(f"life with {moment}: status {status}")  # shown when a test fails
    what = (*moment, KILL)[2] if moment else None
    if what in (None, KILL):
        assert status == (-KILL if moment else 0), output
    else:
        named = what.name if isinstance(what, signal.Signals) else repr(what)
        assert_told(script, named, status, output, folder / "run")
    warned = [row for row in output.splitlines() if "damaged" in row]
    assert len(warned) == len(damaged), output
    assert all(f"run/{name} is damaged" in row for name, row in zip(damaged, warned)), output
    return status


def assert_told(script: str, named: str, status: int, output: str, run_dir: Path):
    """An end that the script saw coming: it says how to go on, and nothing lies about."""
    assert status == 2 and "Traceback" not in output, output
    message = output.splitlines()[-1]
    assert message.startswith(f"{script}.py: ") and named in message, output
    assert re.search(rf" --resume (.*/)?{run_dir.name}$", message), output
    assert not list(run_dir.glob("*.tmp"))


def is_whole(checkpoint: Path) -> bool:
    """Its last 32 bytes are a hash of the others."""
    content = checkpoint.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def saved_x(run_dir: Path) -> int:
    """The step from which a run would go on; whatever was interrupted, that checkpoint is whole."""
    paths = [run_dir / "checkpoint.pt", run_dir / "checkpoint.previous"]
    for path in [path for path in paths if path.exists()]:
        assert is_whole(path)
        return torch.load(path, weights_only=True)["done"]["x"]
    return 0


def run_lives(script: str, line: list[str], folder: Path, moments=(), **how) -> Path:
    """A run with a life for each moment, and one that goes to the end; the run's folder."""
    reached = 0
    for moment in (*moments, None):
        run_life(script, line, folder, moment, **how)
        assert reached <= saved_x(folder / "run"), "what was saved is lost"
        reached = saved_x(folder / "run")
    return folder / "run"


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


def test_killed_between_evaluations(undisturbed, toy_file, tmp_path):
    """Saved at every step, as a slow run is every minute: also with half an episode's updates
    still due. How often a run is saved shows in nothing that it computes. (Every script: see the
    moments drawn by step.)"""
    moments = [("update", 30), ("update", 71), ("update", 23), ("update", 3), ("act", 2)]
    moments += [("update", 1), ("update", 2), ("rename", 5), ("sync", 7), ("update", 12)]
    run_dir = run_lives(ONE, quick(ONE, dataset=toy_file), tmp_path, moments, tick=100)
    assert_same_run(undisturbed(ONE), run_dir)


def test_rows_are_on_the_disk_before_the_checkpoint(undisturbed, toy_file, tmp_path):
    """However slow the log is: a checkpoint says that they are, and nobody writes them again."""
    run_life(ONE, quick(ONE, dataset=toy_file), tmp_path, ("update", 1), lag=0.03)
    assert_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


OTHER_SETTINGS = [
    ("cql", dict(buffer_size=25)),  # a ring of online rows, which overwrites itself twice
    ("cql", dict(offline_steps=0)),
    # One buffer of both, as AWAC's paper has it. It ends after 35 online rows, and goes on over
    # the dataset; or it ends with the dataset, and goes on over that and then over its own rows.
    ("awac", dict(buffer_size=N_SMALL + 35)),
    ("awac", dict(buffer_size=1)),
]


@pytest.mark.parametrize("script, settings", OTHER_SETTINGS, ids=str)
def test_killed_with_other_settings(small_file, tmp_path, script, settings):
    """A ring that spans the dataset or has begun to overwrite itself; no offline phase. (Several
    updates a step, and what a script has of its own: see the moments drawn by step.)"""
    line = quick(script, dataset=small_file, **settings)
    folders = [tmp_path / "alone", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    alone = run_lives(script, line, folders[0])
    moments = [("update", 25), ("act", 4), ("update", 9), ("update", 7)]
    if "buffer_size" in settings:  # late in the online phase, when it has gone round
        moments += [("update", 98), ("act", 3), ("update", 12)]
    assert_same_run(alone, run_lives(script, line, folders[1], moments, tick=100))


def test_ended_from_outside(toy_file, tmp_path, chance):
    """As a user would have it: processes of their own, killed and then asked to end at moments that
    nobody chose, and continued from another working directory."""
    long_enough = dict(offline_steps=800)
    (tmp_path / "alone").mkdir()
    line = quick(ONE, dataset=toy_file, **long_enough)
    alone = run_lives(ONE, line, tmp_path / "alone", log_every=100)

    line = quick(ONE, dataset=os.path.relpath(toy_file, tmp_path), **long_enough)
    line, cwd = [*line, "--run-dir=run"], tmp_path
    for what in (KILL, chance.choice([TERM, INT])):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / f"{ONE}.py"), *line],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(1 if what == KILL else 2):  # the settings; an evaluation, far from the end
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(what)
        output = process.communicate()[1]
        if what == KILL:
            assert process.returncode == -KILL, "it ended before: make the run longer"
            settings = (tmp_path / "run" / "args.json").read_bytes()
            (tmp_path / "run" / "checkpoint.tmp").write_bytes(b"half a che")
        else:
            assert_told(ONE, what.name, process.returncode, output, tmp_path / "run")
            assert len(output.splitlines()) == 1, "no more than the message"
        line, cwd = ["--resume", str(tmp_path / "run"), "--device=cpu"], tmp_path / "alone"
    assert_same_run(alone, run_lives(ONE, [], tmp_path, log_every=100))
    assert (tmp_path / "run" / "args.json").read_bytes() == settings, "a resume changes nothing"
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_resume_of_a_finished_run(undisturbed, toy_file, tmp_path):
    """Is harmless: nothing is trained, nothing changes."""
    run_dir = run_lives(ONE, quick(ONE, dataset=toy_file), tmp_path)
    before = (run_dir / "checkpoint.pt").read_bytes()
    assert run_lives(ONE, [], tmp_path) == run_dir  # there is an args.json: --resume
    assert (run_dir / "checkpoint.pt").read_bytes() == before
    assert_same_run(undisturbed(ONE), run_dir)


# --- Moments that chance draws --------------------------------------------------------------------


@pytest.fixture
def kills(long) -> int:
    return 30 if long else 5


def survive(kills: int, tmp_path: Path, alone: Path, live_on) -> None:
    """Runs with so many kills in all, each of which ends as the one that was left alone.

    live_on(folder, disturbed) is a life of the run in the folder; its status.
    """
    n_killed = n_lives = 0
    for n_runs in itertools.count(1):
        folder, status, reached = tmp_path / str(n_runs), None, 0
        folder.mkdir()
        while status != 0:
            status = live_on(folder, n_killed < kills)
            n_killed, n_lives = n_killed + (status == -KILL), n_lives + 1
            assert reached <= saved_x(folder / "run"), "what was saved is lost"
            reached = saved_x(folder / "run")
        assert_same_run(alone, folder / "run")
        if n_killed == kills:
            break
    print(f"{n_killed} kills in {n_lives} lives of {n_runs} runs")


# Of each place the most calls that a life has before its end, which comes with the run otherwise:
# a third of what there is in a run that is saved at every step.
REACH = dict(update=60, act=80, row=100, save=60, sync=60, rename=120)

# For each script what is hardest to bring back: several updates a step, one buffer of both kinds of
# data, which overwrites itself or not, and of a std for good, a parameter that is not trained, the
# optimiser keeps no state.
BY_STEP = {
    "iql": dict(utd=2, dropout=0.3, fixed_log_std=-1.0),
    "awac": dict(offline_share=-1.0, buffer_size=N_SMALL + 20),
    "cql": dict(utd=3, buffer_size=25),
    "cal_ql": dict(offline_share=-1.0),
}


def test_moments_drawn_by_step(small_file, tmp_path, script, chance, kills):
    """Which call of which function, with every step saved; now and then it is a signal that can be
    answered, and not a kill."""
    line = quick(script, dataset=small_file, **BY_STEP.get(script, {}))
    (tmp_path / "alone").mkdir()
    alone = run_lives(script, line, tmp_path / "alone")

    def live_on(folder: Path, disturbed: bool) -> int:
        name, what = chance.choice([*REACH]), chance.choice([KILL] * 6 + [TERM, INT])
        moment = (name, chance.randint(1, REACH[name]), what) if disturbed else None
        # The last life need not save at every step: that shows in nothing that it computes.
        tick = 100 if disturbed else 0
        child = start(script, words_for(line, folder), folder, moment, tick)
        status, output = finish(child, folder)
        print(f"life with {moment}: status {status}")
        if status == 2:
            assert_told(script, what.name, status, output, folder / "run")
        assert status in (0, 2, -KILL) and "damaged" not in output, output
        return status

    survive(kills, tmp_path, alone, live_on)


def test_moments_drawn_by_the_clock(undisturbed, toy_file, tmp_path, script, chance, kills):
    """The parent kills after a while, of which the machine makes more or less: it is a part of what
    the whole run took, and less when a life was too short to be hit."""
    alone, line = undisturbed(script), quick(script, dataset=toy_file)
    took = (alone / "summary.json").stat().st_mtime - (alone / "args.json").stat().st_mtime
    reach = took / 2

    def live_on(folder: Path, disturbed: bool) -> int:
        nonlocal reach
        child = start(script, words_for(line, folder), folder)
        delay = chance.uniform(0, reach)
        if disturbed and child.ear.poll(300):
            child.join(delay)
            child.kill()
        status, output = finish(child, folder)
        print(f"life killed after {delay:.3f} s, if {disturbed}: status {status}")
        assert status in (0, -KILL) and "damaged" not in output, output
        reach *= 1.1 if status else 0.5
        return status

    survive(kills, tmp_path, alone, live_on)


# --- Progress -------------------------------------------------------------------------------------

FAR_APART = dict(eval_every_offline=10**6, eval_every_online=10**6)


def test_short_lives_get_on(toy_file, tmp_path, chance):
    """From one evaluation to the next no life would get: each takes the run further all the same,
    by a part of its own length, since a life saves whenever its length has doubled."""
    line = quick(ONE, dataset=toy_file, **FAR_APART)
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    alone = run_lives(ONE, line, tmp_path / "alone")
    x, run_dir = 0, tmp_path / "killed" / "run"
    while x < read_checkpoint(alone)["done"]["x"] - 40:
        n = chance.randint(4, 40)
        run_life(ONE, line, tmp_path / "killed", ("update", n), tick=1)
        before, x = x, saved_x(run_dir)
        assert x - before > n / 4
    assert_same_run(alone, run_lives(ONE, line, tmp_path / "killed"))


def test_long_lives_save_every_minute(toy_file, tmp_path, chance):
    line, n = quick(ONE, dataset=toy_file, **FAR_APART), chance.randint(50, 100)
    run_life(ONE, line, tmp_path, ("update", n), tick=20)
    assert n - 5 <= saved_x(tmp_path / "run") < n


# --- Damaged checkpoints --------------------------------------------------------------------------


def flip_a_bit(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


DAMAGES = {
    "truncated": lambda content, chance: content[: chance.randrange(1, len(content))],
    "emptied": lambda content, chance: b"",
    "flipped": flip_a_bit,
    "garbage": lambda content, chance: chance.randbytes(len(content)),
    "zeros": lambda content, chance: bytes(len(content)),
    "text": lambda content, chance: b"no checkpoint at all",
}


def damage(path: Path, how: str, chance: random.Random = random) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes(), chance))


def contents(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


def test_damaged_checkpoint_falls_back(undisturbed, toy_file, tmp_path, chance, long):
    """To the previous one, with a warning, whatever has happened to it and as often as it may."""
    line, run_dir = quick(ONE, dataset=toy_file), tmp_path / "run"
    checkpoint, previous = run_dir / "checkpoint.pt", run_dir / "checkpoint.previous"
    run_life(ONE, line, tmp_path, ("update", 20), tick=100)
    for how in [*DAMAGES] * (5 if long else 1):
        run_life(ONE, line, tmp_path, ("update", chance.randint(3, 5)), tick=100)
        x = torch.load(previous, weights_only=True)["done"]["x"]
        damage(checkpoint, how, chance)
        run_life(ONE, line, tmp_path, ("update", 2), damaged=["checkpoint.pt"], tick=100)
        assert saved_x(run_dir) == x + 1
        damage(previous, how, chance)  # nobody needs it
    assert_same_run(undisturbed(ONE), run_lives(ONE, line, tmp_path))


def test_killed_between_two_renamings(undisturbed, toy_file, tmp_path):
    """There is only the previous checkpoint then."""
    line, run_dir = quick(ONE, dataset=toy_file), tmp_path / "run"
    run_life(ONE, line, tmp_path, ("rename", 4), tick=100)
    assert {path.name for path in run_dir.glob("checkpoint.*")} == {
        "checkpoint.previous",
        "checkpoint.tmp",
    }
    run_life(ONE, line, tmp_path, ("rename", 1), tick=100)
    assert_same_run(undisturbed(ONE), run_lives(ONE, line, tmp_path))


@pytest.fixture
def killed(toy_file, tmp_path):
    """A run with two checkpoints that a kill has left."""
    run_life(ONE, quick(ONE, dataset=toy_file), tmp_path, ("update", 30), tick=100)
    return tmp_path / "run"


def refused(folder: Path, line: list[str]) -> str:
    """The last line of a life that is over at once, and has changed nothing."""
    before = contents(folder / "run")
    status, output = finish(start(ONE, line, folder), folder)
    assert status == 2 and "Traceback" not in output, output
    assert contents(folder / "run") == before
    return output.splitlines()[-1]


def test_damaged_twice(undisturbed, tmp_path, killed, chance):
    """Without a whole one nothing is touched; with one put back it goes on."""
    whole = (killed / "checkpoint.pt").read_bytes()
    for path in killed.glob("checkpoint.*"):
        damage(path, chance.choice([*DAMAGES]), chance)
    assert "delete run/checkpoint.*" in refused(tmp_path, ["--resume", "run"])
    (killed / "checkpoint.pt").write_bytes(whole)
    assert_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


def test_damaged_twice_and_begun_again(undisturbed, tmp_path, killed):
    """What the message advises to delete is enough."""
    for path in killed.glob("checkpoint.*"):
        damage(path, "emptied")
    advice = re.search(r"delete run/(\S+) to begin again", refused(tmp_path, ["--resume", "run"]))
    for path in killed.glob(advice[1]):
        path.unlink()
    assert finish(start(ONE, ["--resume", "run"], tmp_path), tmp_path)[0] == 0
    assert_same_run(undisturbed(ONE), killed)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_while_a_damaged_one_is_replaced(undisturbed, tmp_path, killed, number):
    """At no moment is the damaged one all that is left."""
    damage(killed / "checkpoint.pt", "emptied")
    run_life(ONE, [], tmp_path, ("rename", number), damaged=["checkpoint.pt"], tick=100)
    assert any(map(is_whole, killed.glob("checkpoint.p*"))), "the whole one is lost"
    assert finish(start(ONE, ["--resume", "run"], tmp_path), tmp_path)[0] == 0
    assert_same_run(undisturbed(ONE), killed)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("enforce fail")], ids=repr)
def test_an_intact_checkpoint_is_not_called_damaged(killed, monkeypatch, capsys, error):
    """If there is no room for what it has: a later life may have it."""
    before, module = contents(killed), load_script(ONE)
    monkeypatch.chdir(killed.parent)
    monkeypatch.setattr(sys, "argv", [f"{ONE}.py", "--resume", "run"])
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(SystemExit) as end:
        module.main()
    [message] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "run/checkpoint.pt" in message and repr(error) in message
    assert "damaged" not in message and "delete" not in message
    assert contents(killed) == before


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(killed, monkeypatch, capsys):
    before, module = contents(killed), load_script(ONE)
    monkeypatch.chdir(killed.parent)
    monkeypatch.setattr(sys, "argv", [f"{ONE}.py", "--resume", "run"])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="sector"):
        patch.setattr(Path, "read_bytes", Mock(side_effect=OSError("a bad sector")))
        module.main()
    assert "damaged" not in capsys.readouterr().err
    assert contents(killed) == before


def test_copies_of_checkpoints_are_left_alone(undisturbed, tmp_path, killed):
    """What a user has put beside them, under whatever name."""
    names = ["checkpoint.pt.bak", "checkpoint.pt~", "checkpoint.previous.old", "checkpoint.png"]
    for name in names:
        (killed / name).write_bytes((killed / "checkpoint.previous").read_bytes())
    run_life(ONE, [], tmp_path, ("update", 1), tick=100)
    assert saved_x(killed) == 29, "the newest"
    assert {path.name for path in killed.glob("checkpoint.*")} >= {*names}
    assert_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


# --- Signals and an environment that fails --------------------------------------------------------

ERROR = RuntimeError("the simulator is gone")
# With QUICK's settings: each with the step at which it ends, the number of trained ones. Rows of
# training metrics fall on all of those that end with 0, evaluations on 0, 50, 100 and 120.
INTERRUPTIONS = [
    (("start", 1, TERM), 0),
    (("judge", 3, INT), 0),
    (("update", 20, INT), 20),  # a row is due
    (("update", 30, TERM), 50),  # a row and an evaluation are due
    (("judge", 2, TERM), 50),
    (("step", 2, ERROR), 50),
    (("update", 70, INT), 120),  # the last offline step
    (("judge", 2, INT), 120),
    (("explore", 1, TERM), 120),  # the first online episode
    (("step", 1, ERROR), 120),
    (("update", 1, TERM), 121),  # the others of that episode are still due
]


def test_interrupted(undisturbed, toy_file, tmp_path, script):
    """SIGTERM, Ctrl-C and an environment that raises: all is saved, with the rows of the log that
    are still to be written, and the message says how to go on."""
    line = quick(script, dataset=toy_file)
    for moment, x in INTERRUPTIONS:
        run_life(script, line, tmp_path, moment)
        assert saved_x(tmp_path / "run") == x
    run_life(script, line, tmp_path, ("explore", 12, INT))
    run_life(script, line, tmp_path, ("judge", 1, TERM))  # in an evaluation among online steps
    assert_same_run(undisturbed(script), run_lives(script, line, tmp_path))


# --- Two runs in one folder -----------------------------------------------------------------------


def test_second_run_in_a_folder(undisturbed, toy_file, tmp_path):
    """Refused, new or continued, while the first one lives; then at once accepted."""
    line = [*quick(ONE, dataset=toy_file), "--run-dir", "run"]
    first = start(ONE, line, tmp_path, ("update", 60, "hangs"))
    try:
        assert [first.ear.recv(), first.ear.recv()] == ["trains", "hangs"]
        for second in (line, ["--resume", "run"], line):
            assert "run" in refused(tmp_path, second)
    finally:
        first.kill()
    assert finish(first, tmp_path)[0] == -KILL
    assert_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


def test_runs_that_begin_at_once(undisturbed, toy_file, tmp_path):
    """One of them has the folder."""
    line = [*quick(ONE, dataset=toy_file), "--run-dir", "run"]
    children = [start(ONE, line, tmp_path) for _ in range(3)]
    assert sorted(finish(child, tmp_path)[0] for child in children) == [0, 2, 2]
    assert_same_run(undisturbed(ONE), tmp_path / "run")
