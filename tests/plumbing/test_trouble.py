"""What goes wrong around a run: environments that misbehave, disks that are full, losses that
overflow, settings that make no sense. Each ends it with one clear line and status 2, what was
learned is safe, and once the cause is gone `--resume` ends with the bits of an undisturbed run.

Most lives are children of the server of test_resume.py; they run a copy of a script as `__main__`,
all of it, and their stderr is a file, so what threads and libraries write there is seen, too.
"""

import contextlib
import copy
import errno
import importlib.metadata
import json
import math
import os
import random
import re
import resource
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
from conftest import quick, read_checkpoint, read_events, same_bits, words
from scripts import ROOT, SCRIPTS, load_script
from test_resume import SERVER, assert_same_run
from torch.utils.tensorboard import SummaryWriter
from toy import Trouble

ONE = "cql"  # for what lies in Part II alone
EVER = 10**6
ENV = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
# Evaluations, and with them checkpoints, are after 0, 25, 50, 60 updates, then about 80 and 100.
SHORT = dict(
    env_id="toy:Trouble-v0", offline_steps=60, online_steps=40, eval_every_offline=25, run_dir="run"
)  # fmt: skip

# --- Lives ----------------------------------------------------------------------------------------

CALLS = {
    "lock": (filelock.FileLock, "acquire"),  # the folder is there, and nothing in it yet
    "row": (SummaryWriter, "add_scalar"),
    "flush": (SummaryWriter, "flush"),
    "close": (SummaryWriter, "close"),
    "save": (torch, "save"),  # a checkpoint is made, but not yet written
    "sync": (os, "fsync"),
    "rename": (os, "replace"),
    "follow": (torch, "_foreach_lerp_"),  # the end of each update, with the critics' weights
}


def live(script: str, line: list[str], folder: Path, meddle=None, moment=None, memory=None):
    """Body of a process: runs the folder's copy of a script, with what it has to put up with.

    meddle: (fault, episode, step); moment: (call, numbers, action): the action is done before the
    calls of those numbers, counted from 1; memory: limit of the address space in bytes.
    """
    os.chdir(folder)
    for number, path in ((1, os.devnull), (2, "stderr.txt")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)
    if meddle:
        fault, *place = meddle
        Trouble.meddle = staticmethod(
            lambda env, result: (
                FAULTS[fault](env, result)
                if [Trouble.episode, env.step_number] == place
                else result
            )
        )
    if moment:
        name, numbers, action = moment
        owner, attribute = CALLS[name]
        real, done = getattr(owner, attribute), []

        def watched(*args, **kwargs):
            done.append(name)
            if len(done) in numbers:
                action(*args)
            return real(*args, **kwargs)

        setattr(owner, attribute, watched)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.argv = [f"{script}.py", *line]
    importlib.metadata.distributions = list  # to look for them takes a quarter of a life
    runpy.run_path(f"{script}.py", run_name="__main__")


def start(script: str, folder: Path, **trouble) -> SimpleNamespace:
    """A life in the folder: a new run, or the next one of that which is there; status, stderr."""
    child = SERVER.Process(target=live, args=prepare(script, folder), kwargs=trouble)
    child.start()
    child.join(120)
    if child.is_alive():
        child.kill()
        pytest.fail("no end")
    return ended(child.exitcode, folder)


def prepare(script: str, folder: Path) -> tuple[str, list[str], Path]:
    """Arguments of `live`. `line.json` has the command line of a new run."""
    if not (folder / f"{script}.py").exists():
        shutil.copy(ROOT / f"{script}.py", folder)
    # TensorBoard reads event files in the order of their names, which begin with the second of
    # their making; here lives may share one.
    with contextlib.suppress(OSError):  # as long as a disk is read-only
        for n, path in enumerate(sorted((folder / "run").glob("events*"))):
            path.rename(path.with_name(f"events.out.tfevents.{n:010}"))
    begun = (folder / "run" / "args.json").exists()
    line = json.loads((folder / "line.json").read_text())
    return script, ["--resume", "run"] if begun else line, folder


def ended(status: int, folder: Path) -> SimpleNamespace:
    return SimpleNamespace(status=status, stderr=(folder / "stderr.txt").read_text())


@pytest.fixture
def new_run(tmp_path, toy_file):
    """Makes a folder for the lives of one run, with a quick run's settings and others."""

    def make(script: str, name: str = "folder", **settings) -> Path:
        line = quick(script, dataset=toy_file, **SHORT) + words(**settings)
        (tmp_path / name).mkdir()
        (tmp_path / name / "line.json").write_text(json.dumps(line))
        return tmp_path / name

    return make


def record(script: str, line: list[str], folder: Path):
    """Body of a child: an undisturbed run, of which starts.pt has the state at each episode's
    start, told by the objects that are trained and not by what the script saves."""
    os.chdir(folder)
    module, parts, starts = load_script(script), {}, []
    real_train, real_episode, module.HERE = module.train, module.run_episode, folder

    def train(agent, buffer, env, attributes, done, *rest):
        parts.update(agent=agent, **agent.optimizers)
        parts.update(done=done, buffer=buffer)
        real_train(agent, buffer, env, attributes, done, *rest)

    def run_episode(agent, env, k, generator=None):
        state = {name: parts[name].state_dict() for name in ("agent", *agent.optimizers)}
        done, buffer = parts["done"], parts["buffer"]
        rows = buffer.ring[buffer.added - done.env_steps : buffer.added]  # behind a dataset's
        state |= {"done": vars(done), "ring": rows}
        name = "episode" if generator else "evaluation"
        starts.append({"name": name, "k": k, "state": copy.deepcopy(state)})
        result = real_episode(agent, env, k, generator)
        starts[-1]["length"] = len(result[0][0])
        return result

    module.train, module.run_episode = train, run_episode
    sys.stderr = open("stderr.txt", "w")
    sys.argv = [f"{script}.py", *line]
    module.main()
    torch.save(starts, "starts.pt")


@pytest.fixture(scope="module")
def undisturbed(toy_file, tmp_path_factory):
    """For each script the folder of a run that had no trouble, and its episodes' starts."""
    found = {}

    def get(script: str, env_id=SHORT["env_id"]) -> SimpleNamespace:
        if (script, env_id) not in found:
            folder = tmp_path_factory.mktemp(f"undisturbed-{script}")
            line = quick(script, dataset=toy_file, **SHORT | {"env_id": env_id})
            child = SERVER.Process(target=record, args=(script, line, folder))
            child.start()
            child.join(120)
            assert child.exitcode == 0
            starts = torch.load(folder / "starts.pt")
            found[script, env_id] = SimpleNamespace(run_dir=folder / "run", starts=starts)
        return found[script, env_id]

    return get


def check_message(life, script: str, *named: str) -> str:
    """One line on stderr, of the script, which names all of this; status 2."""
    [message] = life.stderr.splitlines()
    assert message.startswith(f"{script}.py: ") and life.status == 2
    for part in named:
        assert part in message
    return message


def check_goes_on(script: str, folder: Path, expected: Path):
    """The trouble is over: the rest of the run is as if there had been none."""
    life = start(script, folder)
    assert life.status == 0 and life.stderr == ""
    assert not list((folder / "run").glob("*.tmp"))
    assert_same_run(expected, folder / "run")


def all_finite(state) -> bool:
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return all(map(all_finite, state))
    return not isinstance(state, torch.Tensor | float) or bool(
        torch.as_tensor(state).isfinite().all()
    )


# --- Environments that misbehave ------------------------------------------------------------------


def put(index: int, value):
    """Into what reset or step returns."""
    return lambda env, result: (*result[:index], value, *result[index + 1 :])


def throw(error: BaseException):
    def fault(env, result):
        raise error

    return fault


def entry(key: str, change):
    """In a dict of observations; None: it is missing."""
    return lambda env, result: (
        {k: change(v) if k == key else v for k, v in result[0].items() if change or k != key},
        *result[1:],
    )


def never_end(env, result):
    env.limit = math.inf
    Trouble.meddle = staticmethod(lambda env, result: (*result[:2], False, False, {}))
    return result


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


ANYWHERE = {  # also in reset
    "an exception": throw(RuntimeError("no such simulator")),
    "an exception of two lines": throw(RuntimeError("no such\nsimulator")),
    "an OSError": throw(OSError(errno.ENOSPC, "No space left on device")),
    "an InterruptedError": throw(InterruptedError()),
    "SystemExit": throw(SystemExit("bye")),
    "SystemExit of status 0": throw(SystemExit(0)),
    "KeyboardInterrupt": throw(KeyboardInterrupt()),
    "a NaN observed": put(0, floats(math.nan, 0)),
    "inf observed": put(0, floats(0, math.inf)),
    "-inf observed": put(0, floats(-math.inf, 0)),
    "inf and -inf observed": put(0, floats(math.inf, -math.inf)),
    "too many numbers": put(0, floats(0, 0, 0)),
    "too few numbers": put(0, floats(0)),
    "a number alone": put(0, np.float32(0)),
    "no numbers": put(0, floats()),
    "text observed": put(0, "text"),
    "None observed": put(0, None),
    "an observation alone": lambda env, result: result[0],
    "nothing": lambda env, result: None,
}
IN_A_STEP = {
    "a NaN reward": put(1, math.nan),
    "an infinite reward": put(1, -math.inf),
    "a reward beyond float32": put(1, np.float64(1e39)),
    "text as reward": put(1, "one"),
    "text of a number as reward": put(1, "1"),
    "no reward": put(1, None),
    "two rewards": put(1, floats(1, 2)),
    "a complex reward": put(1, 1j),
    "a reward of 400 digits": put(1, 10**400),
    "two terminations": put(2, np.array([True, False])),
    "two truncations": lambda env, result: (*result[:2], False, np.array([True, True]), {}),
    "text as termination": put(2, "no"),
    "NaN as termination": put(2, math.nan),
    "no info": put(4, None),
    "a list as info": put(4, [1]),
    "text as success": put(4, {"success": "yes"}),
    "None as success": put(4, {"success": None}),
    "two successes": put(4, {"is_success": np.array([1, 0])}),
    "infinite success": put(4, {"goal_achieved": math.inf}),
    "four things": lambda env, result: result[:4],
}
IN_A_DICT = {
    "an entry missing": entry("push", None),
    "an entry too long": entry("push", lambda x: floats(0, 0)),
    "NaN in an entry": entry("position", lambda x: x * math.nan),
    "text in an entry": entry("position", lambda x: "text"),
    "an array for the dict": put(0, floats(0, 0)),
}
FAULTS = ANYWHERE | IN_A_STEP | IN_A_DICT | {"no end": never_end}


def choose(starts: list[dict], chance: random.Random, name="", in_reset=False):
    """Where in the run: an episode's number among all, a step in it, and what it starts from."""
    numbered = [(i, start) for i, start in enumerate(starts, 1) if name in ("", start["name"])]
    episode, begin = chance.choice(numbered)
    steps = [1, begin["length"], chance.randint(1, begin["length"])]  # also the first, the last
    return episode, 0 if in_reset else chance.choice(steps), begin


def check_trouble(script, folder, fault, episode, step, begin):
    life = start(script, folder, meddle=(fault, episode, step))
    message = life.stderr.splitlines()[-1] if episode == 1 else None  # gymnasium's checker warns
    message = message or check_message(life, script)
    assert life.status == 2 and "Traceback" not in life.stderr
    told = re.fullmatch(rf"{script}.py: (.*) (\d+), (after|step) (\d+).*: .*; saved, (.*)", message)
    assert told and begin["name"] in told[1] and int(told[2]) == begin["k"]
    assert abs(int(told[4]) - step) <= 1
    assert "--resume run" in told[5], "how to continue"
    check_saved(folder, begin)


def check_saved(folder, begin):
    saved = read_checkpoint(folder / "run")
    for name, part in begin["state"].items():
        assert same_bits(part, saved[name]), name


@pytest.mark.parametrize("fault", ANYWHERE | IN_A_STEP)
def test_misbehaviour(undisturbed, new_run, long, fault):
    """Anywhere in training or evaluation: the message says where and how to go on, and the state
    saved is that of the episode's start."""
    chance = random.Random(fault)
    for k in range(20 if long else 1):
        script, in_reset = chance.choice(SCRIPTS), fault in ANYWHERE and chance.random() < 0.5
        alone, folder = undisturbed(script), new_run(script, str(k))
        place = choose(alone.starts, chance, in_reset=in_reset)
        check_trouble(script, folder, fault, *place)
        if long:
            check_goes_on(script, folder, alone.run_dir)


def test_misbehaviour_of_every_script(undisturbed, new_run, script):
    """First in an evaluation, after the `--resume` in training; a repaired environment goes on from
    there, and ends like one that was well all the time."""
    alone, folder, chance = undisturbed(script), new_run(script), random.Random(script)
    first = choose(alone.starts[:8], chance, "evaluation")
    check_trouble(script, folder, "an exception", *first)
    begun = first[0] - first[2]["k"]  # a resumed run begins with the whole evaluation
    episode, step, begin = choose(alone.starts[begun - 1 :], chance, "episode")
    check_trouble(script, folder, "a NaN reward", episode, step, begin)
    check_goes_on(script, folder, alone.run_dir)


@pytest.mark.parametrize("fault", IN_A_DICT)
def test_misbehaviour_with_dictionaries(undisturbed, new_run, fault):
    env_id = "toy:DictTrouble-v0"
    alone, chance = undisturbed(ONE, env_id), random.Random(fault)
    place = choose(alone.starts, chance, in_reset=chance.random() < 0.5)
    check_trouble(ONE, new_run(ONE, env_id=env_id), fault, *place)


@pytest.mark.parametrize("name", ["evaluation", "episode"])
def test_an_episode_without_an_end(undisturbed, new_run, name, long):
    """The limit is 100,000 steps; here it is lowered, which changes nothing else."""
    chance, limit = random.Random(name), "len(steps) == 100_000"
    script = chance.choice(SCRIPTS)
    folder = new_run(script)
    if not long:
        text = (ROOT / f"{script}.py").read_text()
        assert text.count(limit) == 1
        (folder / f"{script}.py").write_text(text.replace(limit, "len(steps) == 300"))
    episode, _, begin = choose(undisturbed(script).starts, chance, name)
    life = start(script, folder, meddle=("no end", episode, 1))
    message = check_message(life, script, f"{name} {begin['k']}, ", "no end", "--resume run")
    assert f" {100_000 if long else 300}" in message
    check_saved(folder, begin)


@pytest.mark.parametrize("fault", ["an exception", "a NaN reward"])
def test_the_step_that_is_told(undisturbed, new_run, fault):
    """Counted from 1; or it is told how many steps there were."""
    chance = random.Random(ONE)
    episode, step, begin = choose(undisturbed(ONE).starts[2:], chance)
    life = start(ONE, new_run(ONE), meddle=(fault, episode + 2, step))
    told = check_message(life, ONE).split(":")[1]
    made = step - (fault == "an exception")
    assert told.endswith((f" {begin['k']}, step {step}", f" {begin['k']}, after {made} steps"))


def unusual(env, result):
    """Types that are as good as others."""
    if len(result) == 2:
        return result[0].tolist(), {"success": "of no step"}
    obs, reward, terminated, truncated, info = result
    info = {"is_success": np.array(info["success"]), "elsewhere": None, 3: "text"}
    return obs.astype(float), np.array(reward), np.bool_(terminated), int(truncated), info


@pytest.mark.filterwarnings("ignore")  # gymnasium's checker has a taste of its own
def test_what_is_unusual_but_right(undisturbed, run_here, toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Trouble, "meddle", staticmethod(unusual))
    run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT))
    assert_same_run(undisturbed(ONE).run_dir, tmp_path / "run")


# --- Disks ----------------------------------------------------------------------------------------


def shrink(limit: int, *_):
    """From now on no file may be longer. In this way root, too, meets a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def lose(*_):
    raise RuntimeError("the log is gone")


def fail_at(name: str, source: Path, target: Path):
    if target.name.endswith(name):
        fail()


def fill(*_):
    with open("run/others", "wb", 0) as file:
        while file.write(bytes(512)):
            pass


def lock_up(*_):
    subprocess.run(["mount", "--bind", "run", "run"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "run"], check=True)


def full_at(call: str, numbers, limit: int = 1000):
    return call, numbers, partial(shrink, limit)


FULL = {
    "the settings": full_at("lock", [1]),
    "the first row of the log": full_at("row", [1], 450),
    "later rows": full_at("row", [30]),
    "the first checkpoint": full_at("save", [1]),
    "a later checkpoint": full_at("save", [3]),
    "a late checkpoint": full_at("save", [6]),
    "the summary": full_at("close", [1], 300),
}
FAILING = {
    "every fsync": ("sync", range(3, EVER), fail),
    "keeping the previous checkpoint": ("rename", range(EVER), partial(fail_at, ".previous")),
    "a later checkpoint's renaming": ("rename", range(3, EVER), partial(fail_at, ".pt")),
    "the summary's renaming": ("rename", range(EVER), partial(fail_at, "summary.json")),
    "all rows": ("row", range(9, EVER), fail),
    "the log's flush": ("flush", [4], fail),
    "the log's close": ("close", [1], fail),
}


def check_told(life, script: str, cause: int):
    check_message(life, script, "--run-dir run: ", os.strerror(cause))


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(undisturbed, new_run, what):
    script = random.Random(what).choice(SCRIPTS)
    folder = new_run(script)
    check_told(start(script, folder, moment=FULL[what]), script, errno.EFBIG)
    assert not list((folder / "run").glob("*.tmp"))
    check_goes_on(script, folder, undisturbed(script).run_dir)


@pytest.mark.parametrize("what", FAILING)
def test_a_disk_that_fails(undisturbed, new_run, what, long):
    script = random.Random(what).choice(SCRIPTS)
    folder = new_run(script)
    check_told(start(script, folder, moment=FAILING[what]), script, errno.EIO)
    if long or "renaming" in what or "previous" in what:
        check_goes_on(script, folder, undisturbed(script).run_dir)


def test_a_log_that_fails_in_another_way(undisturbed, new_run, script):
    """TensorBoard's own errors need not be the system's."""
    folder = new_run(script)
    moment = "row", range(20, EVER), lose
    life = start(script, folder, moment=moment)
    check_message(life, script, "--run-dir run: ", "the log is gone", "checkpoint: step ")
    check_goes_on(script, folder, undisturbed(script).run_dir)


@pytest.fixture
def mounted():
    """Mounts what only root may, and where that is possible; in the end it is undone."""
    folders = []

    def mount(folder: Path, *options: str):
        folder.mkdir(exist_ok=True)
        if os.geteuid() or subprocess.run(["mount", *options, folder]).returncode:
            pytest.skip("mounting is not allowed here")
        folders.append(folder)

    yield mount
    for folder in folders:
        while not subprocess.run(["umount", "-l", folder], stderr=subprocess.DEVNULL).returncode:
            pass


SMALL = ("-t", "tmpfs", "-o", "size=200k", "tmpfs")
IN_EARNEST = {
    "full, at the log": (errno.ENOSPC, ("row", [33], fill)),
    "full, at a checkpoint": (errno.ENOSPC, ("save", [3], fill)),
    "read-only, at the log": (errno.EROFS, ("row", [33], lock_up)),
    "read-only, at a checkpoint": (errno.EROFS, ("save", [3], lock_up)),
}


@pytest.mark.parametrize("what", IN_EARNEST)
def test_a_disk_in_earnest(undisturbed, new_run, mounted, what, long):
    """Small and filled by others, or made read-only, and in a process that ends as a user's does:
    nor has the interpreter something to say at its end."""
    if what in ("full, at a checkpoint", "read-only, at the log") and not long:
        pytest.skip("takes seconds")
    script = random.Random(what).choice(SCRIPTS)
    cause, _ = IN_EARNEST[what]
    folder = new_run(script)
    mounted(folder / "run", *SMALL)
    code = "import sys, test_trouble as t; from pathlib import Path; _, what, *line = sys.argv;"
    code += f"t.live('{script}', line, Path.cwd(), moment=t.IN_EARNEST[what][1])"
    _, line, _ = prepare(script, folder)
    done = subprocess.run([sys.executable, "-c", code, what, *line], cwd=folder, env=ENV)
    check_told(ended(done.returncode, folder), script, cause)
    if cause == errno.EROFS:
        check_told(start(script, folder), script, cause)  # as long as nothing has changed
        subprocess.run(["umount", "-l", folder / "run"], check=True)
    (folder / "run" / "others").unlink(missing_ok=True)
    check_goes_on(script, folder, undisturbed(script).run_dir)


# --- Divergence -----------------------------------------------------------------------------------


def poison(factor: float, shift: float, targets, critics, tau):
    """At the end of an update, of what the critics have just learned."""
    for weights in critics:
        weights.mul_(factor).add_(shift if weights.shape == (1,) else 0)  # the last layers' biases


def check_diverged(life, script: str, folder: Path, *steps: int):
    """The message tells the step, the quantity and the last good checkpoint, which is there, holds
    no NaN or inf, and is older than that. Before it Q may be told to explode."""
    *warnings, message = life.stderr.splitlines()
    assert life.status == 2 and all("explodes" in warning for warning in warnings)
    told = re.fullmatch(
        rf"{script}.py: --run-dir run: (.*) not finite (in|after) step (\d+); "
        r"last good checkpoint: step (\d+), see --resume",
        message,
    )
    saved, step = read_checkpoint(folder / "run"), int(told[3])
    assert re.search("/|weight", told[1]) and step in (steps or [step])
    assert int(told[4]) == saved["done"]["x"] < step and all_finite(saved["agent"])


SICK = {"NaN": (math.nan, 0), "inf": (1, math.inf), "Q beyond float32": (1e30, 0)}


def test_divergence(undisturbed, new_run, script, long):
    """Weights that an update spoils are told by the next one's losses, and nothing of it is saved:
    what is there goes on like an undisturbed run."""
    chance = random.Random(script)
    for k in range(30 if long else 1):
        sickness = SICK[[*SICK][(SCRIPTS.index(script) + k) % len(SICK)]]
        step = chance.choice([x for x in range(1, 60) if x % 25])  # no evaluation is due
        folder = new_run(script, str(k))
        life = start(script, folder, moment=("follow", [step], partial(poison, *sickness)))
        check_diverged(life, script, folder, step, step + 1)  # when saved at once, the former
        if sickness != SICK["Q beyond float32"]:  # else the weights are well, taken by themselves
            check_goes_on(script, folder, undisturbed(script).run_dir)


@pytest.mark.parametrize("sickness", SICK)
def test_divergence_before_an_evaluation(new_run, sickness):
    """What is not finite is not saved with the evaluation either."""
    script = random.Random(sickness).choice(SCRIPTS)
    folder, moment = new_run(script), ("follow", [50], partial(poison, *SICK[sickness]))
    check_diverged(start(script, folder, moment=moment), script, folder, 50)


@pytest.mark.parametrize("rate", ["actor_lr", "critic_lr"])
def test_learning_rates_out_of_hand(new_run, script, rate, long):
    """Whether that is the end of a run or not: what was saved holds no NaN or inf."""
    folder = new_run(script, **{rate: 1e9})
    for _ in range(5 if long else 1):
        life = start(script, folder)
        if life.status:
            check_diverged(life, script, folder)
    assert all_finite(read_checkpoint(folder / "run")["agent"])


def test_weights_that_all_vanish(new_run):
    """Of IQL's weights exp(beta A): no policy gradient for once, but no divergence either."""
    folder = new_run("iql", beta=1000.0, batch_size=1)
    life = start("iql", folder)
    assert life.status == 0, life.stderr


def test_exploding_q(new_run, script):
    """Told once in a run, and each time in the log."""
    folder = new_run(script)
    moment = ("follow", [30], partial(poison, 1, 1e4))
    lives = [start(script, folder, moment=moment, meddle=("an exception", 11, 1))]
    lives += [start(script, folder)]
    assert [life.status for life in lives] == [2, 0]
    [warning] = [line for x in lives for line in x.stderr.splitlines() if "explodes" in line]
    assert warning.startswith(f"{script}.py: Q(s0) ") and "q_bound" in warning
    scalars = read_events(folder / "run")
    bounds, found = (dict(scalars[f"eval/{key}"]) for key in ("q_bound", "q_s0"))
    assert bounds.keys() == found.keys()
    assert [abs(found[x]) > bounds[x] for x in bounds] == [x > 30 for x in bounds]
    assert [*bounds.values()] == [pytest.approx(1 / (1 - 0.99))] * len(bounds)


def test_the_bound_of_q(new_run):
    """max |reward| / (1 - gamma), scaled, of all rewards that were seen; a healthy run is below."""
    folder = new_run(ONE, gamma=0.9, reward_scale=3.0, reward_bias=1.0)
    assert start(ONE, folder).stderr == ""
    bounds = [value for _, value in read_events(folder / "run")["eval/q_bound"]]
    assert bounds == [pytest.approx(2 / (1 - 0.9))] * len(bounds)


def test_a_healthy_run_has_nothing_to_say(undisturbed, script):
    run_dir = undisturbed(script).run_dir
    assert (run_dir.parent / "stderr.txt").read_text() == ""
    assert all_finite(read_checkpoint(run_dir))


# --- Input that makes no sense --------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(toy_file, tmp_path_factory):
    """The folder of a run of ONE that got to its third evaluation."""
    folder = tmp_path_factory.mktemp("unfinished")
    line = quick(ONE, dataset=toy_file, **SHORT)
    (folder / "line.json").write_text(json.dumps(line))
    life = start(ONE, folder, meddle=("an exception", 5, 1))
    assert life.status == 2 and read_checkpoint(folder / "run")["done"]["x"] == 50
    return folder / "run"


@pytest.fixture
def edited(unfinished, tmp_path, monkeypatch, capsys):
    """Goes on with the unfinished run after a change of its args.json (of the record, or other
    text in its place): status, stderr. Who is refused has changed nothing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(unfinished, "run")
    whole = (unfinished / "args.json").read_text()

    def edit(change) -> SimpleNamespace:
        record = json.loads(whole)
        Path("run/args.json").write_text(change(record) or json.dumps(record))
        before = {path: path.read_bytes() for path in Path("run").glob("*")}
        monkeypatch.setattr(sys, "argv", [f"{ONE}.py", "--resume", "run"])
        module, status = load_script(ONE), 0
        monkeypatch.setattr(module, "HERE", tmp_path)
        try:
            module.main()
        except SystemExit as end:
            status = end.code
            assert before == {path: path.read_bytes() for path in Path("run").glob("*")}
        return SimpleNamespace(status=status, stderr=capsys.readouterr().err)

    return edit


EDITED = {"gamma": "high", "batch_size": None, "actor_hidden": [8.5], "critic_lr": 1e-5}
EDITED |= {"dataset": "nowhere", "no_such": 1, "threads": 1.0}


@pytest.mark.parametrize("name", EDITED)
def test_edited_setting_of_a_run(edited, name):
    """Of whatever kind: a hash tells it, and nothing is lost."""
    life = edited(lambda record: record["settings"].update({name: EDITED[name]}))
    [message] = life.stderr.splitlines()
    assert life.status == 2 and message.startswith(f"{ONE}.py: ") and "run" in message


BROKEN = {
    "no settings": lambda record: record.pop("settings") and None,
    "settings in a list": lambda record: record.update(settings=[]),
    "no settings but null": lambda record: record.update(settings=None),
    "no hash": lambda record: record.pop("sha256") and None,
    "no hash of the dataset": lambda record: record.pop("dataset_sha256") and None,
    "no script": lambda record: record.pop("script") and None,
    "a number as script": lambda record: record.update(script=3),
    "no row": lambda record: record.pop("row") and None,
    "another hash": lambda record: record.update(dataset_sha256="0"),
    "a list": lambda record: json.dumps([record]),
    "a number": lambda record: "3.5",
    "text": lambda record: '"text"',
    "deeply nested": lambda record: "[" * 10**5,
    "a number of many digits": lambda record: "1" + "0" * 10**4,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_record_of_a_run(edited, fault):
    assert edited(BROKEN[fault]).status in ([0, 2] if fault == "no row" else [2])


GIGANTIC = [
    dict(buffer_size=10**9),
    dict(batch_size=10**9),
    dict(n_actions=10**9),
    dict(batch_size=10**4, n_actions=10**4),
    dict(actor_hidden=(10**9,)),
    dict(critic_hidden=(10**5, 10**5)),
    dict(threads=10**9),
]


@pytest.mark.parametrize("settings", GIGANTIC, ids=str)
def test_gigantic(new_run, settings):
    """More than there is memory for (3 GB here), or than makes sense: one line that says so."""
    message = check_message(start(ONE, new_run(ONE, **settings), memory=3 * 2**30), ONE)
    assert "alloca" in message or f"--{[*settings][0].replace('_', '-')} " in message


def strict(path: Path):
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


INFOS = {
    "no success": {},
    "a success that is no number": {"success": math.nan},
    "infinite success": {"success": math.inf},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("told", INFOS)
def test_summary_is_json(run_here, toy_file, tmp_path, monkeypatch, told):
    """Whatever the environment tells, or refuses to tell, about success."""
    monkeypatch.setattr(
        Trouble, "meddle", staticmethod(lambda env, result: (*result[:-1], INFOS[told]))
    )
    with contextlib.suppress(SystemExit):  # it may be refused, too
        run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT))
    for path in tmp_path.glob("run/*.json"):
        strict(path)
    if told == "no success":
        summary = strict(tmp_path / "run" / "summary.json")
        assert summary["before"]["success"] is None and summary["after"]["success"] is None


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EPIPE])
def test_stdout_that_is_full_or_closed(new_run, cause, long):
    """As behind `> FILE` on a full disk, or before `| head`: one line, no second one at the end."""
    if cause == errno.ENOSPC and not (long and os.path.exists("/dev/full")):
        pytest.skip("takes seconds")
    script, line, folder = prepare(ONE, new_run(ONE))
    reading, writing = os.pipe()
    os.close(reading)
    if cause == errno.ENOSPC:
        os.dup2(os.open("/dev/full", os.O_WRONLY), writing)
    with open(folder / "stderr.txt", "w") as stderr:
        command = [sys.executable, f"{script}.py", *line]
        status = subprocess.run(command, cwd=folder, env=ENV, stdout=writing, stderr=stderr)
    os.close(writing)
    check_told(ended(status.returncode, folder), script, cause)


def test_curves_on_a_full_disk(undisturbed, tmp_path):
    """The plot at a run's end, too, has one line to say and leaves no half of a file."""
    run_dir = shutil.copytree(undisturbed(ONE).run_dir, tmp_path / "run")
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999));"
    code += f"runpy.run_path('{ROOT / 'benchmarks' / 'plot.py'}', run_name='__main__')"
    command = [sys.executable, "-c", code, str(run_dir)]
    done = subprocess.run(command, stderr=-1, text=True)
    assert done.returncode == 2
    [message] = done.stderr.splitlines()
    assert str(run_dir) in message and os.strerror(errno.EFBIG) in message
    assert not list(run_dir.glob("curves*"))
