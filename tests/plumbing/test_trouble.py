"""What goes wrong around a run: environments that misbehave, disks that are full, losses that
diverge. Each ends it in a way that tells the cause and how to go on, what was learned is safe, and
once the cause is gone `--resume` ends with the bits of an undisturbed run.
"""

import contextlib
import errno
import json
import math
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick, read_checkpoint, read_events
from lives import check_advice, check_same_run, finish, run_life, run_lives, saved_step, start
from scripts import SCRIPTS, load_script
from toy import Trouble

ONE = "cql"  # for what all scripts share
# Evaluations, and with them checkpoints, are after 0, 25, 50, 60 updates, then about 80 and 100.
SHORT = dict(
    env_id="toy:Trouble-v0", offline_steps=60, online_steps=40, eval_every_offline=25, run_dir="run"
)
FIRST_ONLINE = 8  # episodes are played in the four evaluations before the first online one


@pytest.fixture(scope="module")
def undisturbed(toy_file, tmp_path_factory):
    """For each script the folder of a run that had no trouble."""
    folders = {}

    def get(script: str, log_every=100) -> Path:
        if (script, log_every) not in folders:
            folder = tmp_path_factory.mktemp(f"undisturbed-{script}")
            line = quick(script, dataset=toy_file, **SHORT)
            folders[script, log_every] = run_lives(script, line, folder, log_every=log_every)
        return folders[script, log_every]

    return get


@pytest.fixture
def meddle(monkeypatch):
    """Lets a fault happen at a step of an episode, counted over all from 0; 0 is a reset."""

    def meddle(fault, episode: int, step: int) -> None:
        def at_the_moment(env, result):
            now = Trouble.episode == episode and env.step_number == step
            return fault(env, result) if now else result

        monkeypatch.setattr(Trouble, "meddle", staticmethod(at_the_moment))
        monkeypatch.setattr(Trouble, "episode", -1)

    return meddle


def all_finite(state) -> bool:
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return all(map(all_finite, state))
    if isinstance(state, torch.Tensor | float):
        return bool(torch.as_tensor(state).isfinite().all())
    return True


# --- Environments that misbehave ------------------------------------------------------------------


def put(index: int, value):
    """Into what reset or step returns."""
    return lambda env, result: (*result[:index], value, *result[index + 1 :])


def throw(env, result):
    raise RuntimeError("no such simulator")


def never_end(env, result):
    env.limit = math.inf
    Trouble.meddle = staticmethod(lambda env, result: (*result[:2], False, *result[3:]))
    return result


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


FAULTS = {  # each with a part of the message
    "an exception": (throw, "no such simulator"),
    "NaN observed": (put(0, floats(math.nan, 0)), "observation [nan"),
    "inf observed": (put(0, floats(0, -math.inf)), "-inf]"),
    "a NaN reward": (put(1, math.nan), "reward nan"),
    "an infinite reward": (put(1, math.inf), "reward inf"),
    "a success of text": (put(4, {"is_success": "yes"}), "info['is_success'] is 'yes'"),
    "no success": (put(4, {"success": None}), "info['success'] is None"),
    "two successes": (put(4, {"success": np.array([1, 0])}), "info['success'] is array([1, 0])"),
    "a NaN success": (put(4, {"success": math.nan}), "info['success'] is nan"),
    "no end": (never_end, "no end after 300 steps"),
}
MOMENTS = [(1, 3), (4, 10), (FIRST_ONLINE, 1), (FIRST_ONLINE + 2, 2)]  # episodes, steps in them
CASES = [
    (fault, SCRIPTS[i % len(SCRIPTS)], MOMENTS[(i + i // 4) % len(MOMENTS)])
    for i, fault in enumerate(FAULTS)
]
CASES += [("NaN observed", ONE, (5, 0)), ("an exception", "iql", (FIRST_ONLINE + 1, 0))]  # resets


@pytest.mark.filterwarnings("ignore")  # gymnasium's checker warns of a NaN, too
@pytest.mark.parametrize("fault, script, moment", CASES)
def test_misbehaviour(
    undisturbed, run_here, toy_file, tmp_path, monkeypatch, capsys, meddle, fault, script, moment
):
    """In an evaluation or in training. An exception is the environment's own, and says at its end
    what is saved; of all else a line tells. A repaired environment goes on from there."""
    monkeypatch.setattr(load_script(script), "LONGEST_EPISODE", 300)
    change, named = FAULTS[fault]
    meddle(change, *moment)
    with pytest.raises((RuntimeError, SystemExit)) as raised:
        run_here(script, *quick(script, dataset=toy_file, **SHORT))
    if fault == "an exception":
        [message] = raised.value.__notes__
    else:
        [message] = capsys.readouterr().err.splitlines()
        assert raised.value.code == 2 and named in message
    begin = re.split("the checkpoint|no checkpoint", message)[0]
    assert begin.startswith(f"{script}.py: ")
    check_advice(message, begin, tmp_path / "run")
    meddle(change, -1, 0)  # never
    run_here(script, "--resume", "run")
    check_same_run(undisturbed(script), tmp_path / "run")


def test_what_is_printed(toy_file, tmp_path, script):
    """The traceback, for the environment is the user's, and below it how to go on."""
    error = RuntimeError("the simulator is gone")
    line = quick(script, dataset=toy_file, offline_steps=20, online_steps=0)
    run_life(script, line, tmp_path, ("update", 7, error))


def unusual(env, result):
    """Types that are as good as others."""
    if len(result) == 2:
        return result[0].tolist(), {"success": "of no step"}
    obs, reward, terminated, truncated, info = result
    info = {"is_success": np.array([info["success"]]), "elsewhere": None, 3: "text"}
    return obs.astype(float), np.array(reward), np.bool_(terminated), int(truncated), info


@pytest.mark.filterwarnings("ignore")  # gymnasium's checker has a taste of its own
def test_what_is_unusual_but_right(undisturbed, run_here, toy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Trouble, "meddle", staticmethod(unusual))
    run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT))
    check_same_run(undisturbed(ONE), tmp_path / "run")


def test_an_environment_that_tells_no_success(run_here, toy_file, tmp_path, monkeypatch):
    """The score is the return then; of a return nobody knows how far it is from the best, so there
    is a dip and no regret."""
    monkeypatch.setattr(Trouble, "meddle", staticmethod(lambda env, result: (*result[:-1], {})))
    run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for result in summary.values():
        assert result["score"] == result["return"] and "success" not in result
    assert "dip" in summary["after"] and "regret" not in summary["after"]


# --- Disks ----------------------------------------------------------------------------------------


def fill(*_) -> None:
    """From now on no file may be longer than 10 kB: so root, too, meets a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL = {
    "the first checkpoint": ("save", 1, fill),
    "a later checkpoint": ("save", 3, fill),
    "the last step of a checkpoint": ("sync checkpoint.new", 3, NO_SPACE),
    "the settings": ("sync args.json", 1, NO_SPACE),
    "the end of pre-training": ("sync pretrained.pt", 1, NO_SPACE),
    "the summary": ("sync summary.json", 1, NO_SPACE),
    "the log": ("row", 300, fill),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(undisturbed, toy_file, tmp_path, what):
    """A traceback, how to go on, and no half of a file."""
    line, log_every = quick(ONE, dataset=toy_file, **SHORT), 1 if what == "the log" else 100
    status, output = finish(start(ONE, line, tmp_path, FULL[what], log_every=log_every), tmp_path)
    assert status == 1 and "Traceback" in output, output
    if what != "the settings":  # of which it has not begun
        check_advice(output.splitlines()[-1], f"{ONE}.py: ", tmp_path / "run")
    assert not list(tmp_path.glob("run/*.tmp"))
    run_dir = run_lives(ONE, line, tmp_path, log_every=log_every)
    check_same_run(undisturbed(ONE, log_every), run_dir)


# --- Divergence -----------------------------------------------------------------------------------

SICK = {"NaN": lambda x: x.fill_(math.nan), "inf": lambda x: x.fill_(math.inf)}
SICK["Q beyond float32"] = lambda x: x.mul_(1e30)


@pytest.fixture
def sicken(monkeypatch):
    """Spoils the critics at the end of the update of a number, counted from 1."""

    def sicken(script: str, number: int, change) -> None:
        agent, done = load_script(script).Agent, []
        update = agent.update

        def updated(self, *args):
            metrics = update(self, *args)
            done.append(1)
            if len(done) == number:
                with torch.no_grad():
                    for weights in self.critic.parameters():
                        change(weights)
            return metrics

        monkeypatch.setattr(agent, "update", updated)

    return sicken


@pytest.mark.parametrize(
    "sickness, script, number",  # of the update: before a row of the log, or an evaluation
    [
        (sickness, SCRIPTS[(i + j) % len(SCRIPTS)], number)
        for i, sickness in enumerate(SICK)
        for j, number in enumerate([33, 50, 33])
    ],
)
def test_divergence(
    run_here, toy_file, tmp_path, monkeypatch, sicken, capsys, sickness, script, number
):
    """The message tells what, at which step, and which checkpoint is good: that one is finite."""
    monkeypatch.setattr(load_script(script), "LOG_EVERY", 10)
    monkeypatch.setattr(load_script(script), "SAVE_EVERY", 0)
    sicken(script, number, SICK[sickness])
    with pytest.raises(SystemExit) as end:
        run_here(script, *quick(script, dataset=toy_file, **SHORT))
    *warnings, message = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and all("explodes" in line for line in warnings)
    updates = read_checkpoint(tmp_path / "run")["run"]["updates"]
    assert "is NaN or inf at step" in message
    step = int(re.search(r"at step (\d+)", message)[1])
    assert number <= step <= number + 10
    assert f"the checkpoint of step {saved_step(tmp_path / 'run')} is good" in message
    assert message.endswith("start another run with smaller learning rates")
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert updates < number or sickness == "Q beyond float32" and updates <= step
    assert all_finite(read_checkpoint(tmp_path / "run"))


@pytest.mark.parametrize("rate", ["actor_lr", "critic_lr"])
def test_learning_rates_out_of_hand(run_here, toy_file, tmp_path, script, rate):
    """Whether that is the end of a run or not: what was saved holds no NaN or inf."""
    with contextlib.suppress(SystemExit):
        run_here(script, *quick(script, dataset=toy_file, **SHORT | {rate: 1e9}))
    assert all_finite(read_checkpoint(tmp_path / "run")["agent"])


def test_weights_that_all_vanish(run_here, toy_file, tmp_path):
    """Of IQL's weights exp(beta A): no policy gradient for once, but no divergence either."""
    line = quick("iql", dataset=toy_file, **SHORT, beta=1000.0)
    run_here("iql", *line, "--batch-size=1")
    assert (tmp_path / "run" / "summary.json").exists()


# --- Q beyond what is possible --------------------------------------------------------------------


def lift(weights: torch.Tensor) -> None:
    if weights.shape == (1,):  # a last layer's bias
        weights.add_(1e4)


def test_exploding_q(run_here, toy_file, tmp_path, sicken, meddle, capsys):
    """Told once in a run, also if that is resumed, and each time in the log."""
    sicken(ONE, 30, lift)
    meddle(throw, FIRST_ONLINE, 1)
    with pytest.raises(RuntimeError):
        run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT))
    run_here(ONE, "--resume", "run")
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"{ONE}.py: warning: Q(s0) ") and "q_bound" in warning
    assert "step 50 " in warning
    scalars = read_events(tmp_path / "run")
    bounds, found = (dict(scalars[f"eval/{key}"]) for key in ("q_bound", "q_s0"))
    assert [abs(found[step]) > bounds[step] for step in bounds] == [step > 30 for step in bounds]


def test_the_bound_of_q(run_here, toy_file, tmp_path, capsys):
    """max |reward| / (1 - gamma), scaled, of all rewards that were seen; a healthy run is below."""
    scaling = dict(gamma=0.9, reward_scale=3.0, reward_bias=1.0)
    run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT, **scaling))
    bounds = [value for _, value in read_events(tmp_path / "run")["eval/q_bound"]]
    assert bounds == [pytest.approx(2 / (1 - 0.9))] * len(bounds)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_bounds_that_say_nothing(run_here, toy_file, tmp_path, capsys, scale):
    """Rewards of 0 bound Q to 0, and an untrained Q is beyond any small bound."""
    settings = dict(reward_scale=scale, offline_steps=0, online_steps=0)
    run_here(ONE, *quick(ONE, dataset=toy_file, **SHORT | settings))
    assert capsys.readouterr().err == ""


def test_a_healthy_run_has_nothing_to_say(undisturbed, script):
    run_dir = undisturbed(script)
    assert "warning" not in (run_dir.parent / "output.txt").read_text()
    assert all_finite(read_checkpoint(run_dir))


# --- The record of a run --------------------------------------------------------------------------


BROKEN = {
    "no settings": lambda record: record.pop("settings") and None,
    "settings in a list": lambda record: record.update(settings=[]),
    "an unknown setting": lambda record: record["settings"].update(no_such=1),
    "a senseless setting": lambda record: record["settings"].update(gamma=2.0),
    "no hash of the dataset": lambda record: record.pop("dataset_sha256") and None,
    "no script": lambda record: record.pop("script") and None,
    "another script": lambda record: record.update(script="iql.py"),
    "a list": lambda record: json.dumps([record]),
    "a number": lambda record: "3.5",
    "half of it": lambda record: json.dumps(record)[:1000],
    "nothing": lambda record: " ",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_record_of_a_run(undisturbed, run_here, tmp_path, capsys, fault):
    """One line that names the folder, and nothing is changed."""
    run_dir = Path(shutil.copytree(undisturbed(ONE), tmp_path / "run"))
    record = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(BROKEN[fault](record) or json.dumps(record))
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    with pytest.raises(SystemExit) as end:
        run_here(ONE, "--resume", "run")
    [message] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message.startswith(f"{ONE}.py: ") and "run" in message
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before
