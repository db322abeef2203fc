"""Whole runs: as a user starts them, and in this process with a look at what came of it."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict, fields
from importlib import metadata

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    N_SMALL,
    QUICK,
    online_rows,
    quick,
    read_checkpoint,
    read_events,
    run_script,
    same_bits,
)
from scripts import CALIBRATION_KEYS, CQL_FAMILY, ROOT, SCRIPTS, load_script, small_problem
from toy import LIMIT, Toy, play, save

EVAL_KEYS = {"score", "success", "return", "discounted_return", "q_s0", "q_bound", "dip", "regret"}


# --- As a user starts them ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SCRIPTS)
def default_run(request, tmp_path_factory):
    """The default task, cut to some hundred steps, started from another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    line = ["--offline-steps", "300", "--online-steps", "200", "--eval-episodes", "2"]
    done = run_script(ROOT / f"{request.param}.py", *line, cwd=folder)
    assert done.status == 0, done.stderr
    done.script = request.param
    (done.run_dir,) = (folder / "runs").iterdir()
    return done


def test_default_task_says_what_it_does(default_run):
    lines = default_run.stdout.splitlines()
    assert "\r" not in default_run.stdout, "the output is a file here"
    assert [line.split()[0] for line in lines[:4]] == [f"{default_run.script}.py:", *3 * ["data:"]]
    assert "row 'pointmaze'" in lines[0] and str(default_run.run_dir.name) in lines[0]
    phases = [line.split()[0] for line in lines[4:]]
    assert phases[:5] == ["offline", "offline", "online", "before", "after"]
    assert ["curves.png" in line for line in lines[9:]] == [True]
    for line in lines[4:7]:
        assert all(part in line for part in ("/500 ", "steps/s", "success", "return", "Q(s0)"))
    assert max(map(len, lines[4:7])) <= 100, "fits a window"


def test_default_task_is_quiet(default_run):
    """Warnings that a user can do nothing about would hide those that matter."""
    assert default_run.stderr == ""


def test_folder_of_a_run(default_run):
    names = {path.name for path in default_run.run_dir.iterdir()}
    assert default_run.run_dir.name == f"{default_run.script}-pointmaze-s0"
    events = {name for name in names if name.startswith("events")}
    assert len(events) == 1
    files = {"args.json", "checkpoint.pt", "checkpoint.previous", "pretrained.pt", "summary.json"}
    curves = {"curves.png", "curves.csv"}  # drawn by benchmarks/plot.py, beside the script
    assert names - events - {"lock"} == files | curves


def test_args_json_tells_all(default_run):
    record = json.loads((default_run.run_dir / "args.json").read_text())
    module = load_script(default_run.script)
    assert record["script"] == f"{default_run.script}.py" and record["row"] == "pointmaze"
    assert record["settings"].keys() == {field.name for field in fields(module.Args)}
    assert record["settings"]["offline_steps"] == 300
    packages = {"torch", "numpy", "gymnasium", "mujoco"}
    assert {name: record["packages"][name] for name in packages} == {
        name: metadata.version(name) for name in packages
    }
    assert record["python"] == sys.version and len(record["dataset_sha256"]) == 64
    assert os.cpu_count() in record["hardware"]
    if (ROOT / ".git").exists():
        commit = record["commit"].removesuffix("-dirty")
        assert len(commit) == 40 and int(commit, 16)


def test_log_of_the_default_task(default_run):
    scalars = read_events(default_run.run_dir)
    assert {f"eval/{key}" for key in EVAL_KEYS} <= scalars.keys()
    assert [step for step, _ in scalars["eval/score"]][:2] == [0, 300]
    assert [step for step, _ in scalars["eval/dip"]] == [scalars["eval/score"][-1][0]]
    losses = [key for key in scalars if key.startswith("loss/")]
    assert losses and all(np.isfinite(scalars[key][-1][1]) for key in losses)
    assert CALIBRATION_KEYS <= scalars.keys()
    assert all(0 <= value <= 1 for _, value in scalars["calibration/rate"])
    last = scalars["eval/score"][-1][0]
    for key in scalars:
        if not key.startswith(("eval/", "train/")):
            assert [step for step, _ in scalars[key]] == [*range(100, last + 1, 100)], key
    assert last >= 500


def test_summary_repeats_the_log(default_run):
    summary = json.loads((default_run.run_dir / "summary.json").read_text())
    scalars = read_events(default_run.run_dir)
    for key in ("score", "return", "discounted_return", "q_s0"):
        before, after = [value for _, value in scalars[f"eval/{key}"]][-2:]
        assert summary["before"][key] == pytest.approx(before, rel=1e-6)
        assert summary["after"][key] == pytest.approx(after, rel=1e-6)


def test_alone_in_an_empty_folder(tmp_path, script="iql"):
    """Nothing but the script and a dataset; the environment is one of gymnasium's own, with another
    box and no word about success: the score is the return, normalised by the file's attributes."""
    low, high = -1600.0, -100.0
    data = play(gym.make("Pendulum-v1"), episodes=3)
    save(tmp_path / "swing-up.hdf5", data, ref_min_score=low, ref_max_score=high)
    shutil.copy(ROOT / f"{script}.py", tmp_path)
    steps = dict(online_steps=100, eval_every_offline=10**6, eval_episodes=1)
    line = quick(script, dataset="swing-up.hdf5", **steps, env_id="Pendulum-v1")
    done = run_script(tmp_path / f"{script}.py", *line, cwd=tmp_path)
    assert done.status == 0, done.stderr
    run_dir = tmp_path / "runs" / f"{script}-swing-up-s0"
    record = json.loads((run_dir / "args.json").read_text())
    assert record["row"] == "defaults" and record["commit"] == ""
    scalars = read_events(run_dir)
    for (_, score), (_, total) in zip(scalars["eval/score"], scalars["eval/return"]):
        assert score == pytest.approx((total - low) / (high - low), rel=1e-4)


# --- What a run does ------------------------------------------------------------------------------


def test_same_seed_same_bits(run_here, script, toy_file, tmp_path, monkeypatch):
    """Also with an environment that draws from the generators that belong to nobody, whose state
    before a run may not matter."""
    reset = Toy.reset

    def reset_by_chance(self, *, seed=None, options=None):
        reset(self, seed=seed)
        self.state[0] *= random.random() + torch.rand(()).item()
        self.state[0] += np.random.random()  # noqa: NPY002, the old generator is what is tested
        return self.observe(), {}

    monkeypatch.setattr(Toy, "reset", reset_by_chance)
    for name, seed in dict(one=3, again=3, other=4).items():
        for seed_it in (random.seed, np.random.seed, torch.manual_seed):
            seed_it(len(name))
        run_here(script, *quick(script, dataset=toy_file, seed=seed, run_dir=name))
    one, again, other = (read_checkpoint(tmp_path / name) for name in ("one", "again", "other"))
    assert same_bits(one, again)
    assert same_bits(read_events(tmp_path / "one"), read_events(tmp_path / "again"))
    assert not same_bits(one["agent"], other["agent"])


def test_seed_reaches_every_part():
    """Data order, noise and episodes each have a seed of their own, derived from the run's."""
    module = load_script("cql")
    purposes = ("weights", "batch", "noise", "exploration", "episode", "evaluation")
    seeds = {
        module.seed_for(module.Args(seed=seed), purpose, k)
        for seed in range(3)
        for purpose in purposes
        for k in range(3)
    }
    assert len(seeds) == 3 * len(purposes) * 3


def test_when_and_what_is_logged(run_here, script, toy_file, tmp_path, monkeypatch):
    """How often shows in no bit of the run. What is drawn and worked out for the log alone is so
    for the updates that are logged, and no other."""
    module, found = load_script(script), []
    real = module.Agent.update
    monkeypatch.setattr(module.Agent, "update", lambda *a: found.append(real(*a)) or found[-1])
    line = quick(script, dataset=toy_file)
    run_here(script, *line, "--run-dir", "usual")
    n, due = len(found), [*range(7, len(found) + 1, 7)]
    monkeypatch.setattr(module, "LOG_EVERY", 7)
    run_here(script, *line, "--run-dir", "often")
    assert same_bits(*(read_checkpoint(tmp_path / name) for name in ("usual", "often")))

    numbered = dict(enumerate(found[n:], 1))
    assert len(numbered) == n
    scalars = read_events(tmp_path / "often")
    for key in CALIBRATION_KEYS:
        worked_out = [x for x in numbered if key in numbered[x]]
        assert worked_out == ([*numbered] if script in CQL_FAMILY else due)
        assert [step for step, _ in scalars[key]] == due
        wanted = np.float32([numbered[x][key] for x in due])
        np.testing.assert_array_equal([value for _, value in scalars[key]], wanted)


def test_evaluation_is_right(run_here, script, toy_file, tmp_path):
    """The last one, played again by hand with the weights of the checkpoint."""
    scaling = dict(reward_scale=2.0, reward_bias=0.5, gamma=0.9)
    line = quick(script, dataset=toy_file, run_dir="run", **scaling)
    module = run_here(script, *line)
    args = module.parse_args(line)
    agent = module.Agent(args, 2, 1, "cpu")
    agent.load_state_dict(read_checkpoint(tmp_path / "run")["agent"])
    env, results = gym.make("toy:Toy-v0"), []
    for k in range(args.eval_episodes):
        obs, _ = env.reset(seed=module.seed_for(args, "evaluation", k))
        start, rewards, over = torch.tensor(obs)[None], [], False
        while not over:
            action = agent.act(torch.tensor(obs)).numpy()
            obs, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            over = terminated or truncated
        q_s0 = agent.critic(start, agent.act(start)[:, None]).min().item()
        discounted = sum((2 * r + 0.5) * 0.9**t for t, r in enumerate(rewards))
        results.append([info["success"], info["success"], sum(rewards), discounted, q_s0])
    scalars = read_events(tmp_path / "run")
    logged = [scalars[f"eval/{key}"][-1][1] for key in ("score", "success", "return")]
    logged += [scalars[f"eval/{key}"][-1][1] for key in ("discounted_return", "q_s0")]
    np.testing.assert_allclose(logged, np.mean(results, 0), rtol=1e-5)


def test_dip_and_regret(run_here, script, toy_file, tmp_path, monkeypatch):
    """From a course of scores that is given here. The dip is measured from the last evaluation
    before fine-tuning, the regret is the mean over the evaluations since, without that one."""
    scores = iter([0.1, 0.3, 0.9, 0.8, 0.7, 0.2, 0.5, 1.0])  # the first four offline
    wanted_dip = [0.7 - 0.8, 0.2 - 0.8, 0.2 - 0.8, 0.2 - 0.8]
    wanted_regret = [0.3, (0.3 + 0.8) / 2, (0.3 + 0.8 + 0.5) / 3, (0.3 + 0.8 + 0.5 + 0) / 4]
    module = load_script(script)
    real = module.summarize
    monkeypatch.setattr(module, "summarize", lambda *a: real(*a) | {"score": next(scores)})
    line = quick(script, dataset=toy_file, run_dir="run", eval_every_online=15)
    run_here(script, *line)
    scalars = read_events(tmp_path / "run")
    assert [step for step, _ in scalars["eval/score"]][:4] == [0, 50, 100, 120]
    n = len(scalars["eval/dip"])  # evaluations wait for an episode's end: at most 4
    assert n >= 3
    np.testing.assert_allclose([value for _, value in scalars["eval/dip"]], wanted_dip[:n])
    np.testing.assert_allclose([value for _, value in scalars["eval/regret"]], wanted_regret[:n])


def episodes_of(rows) -> list[slice]:
    """The toy's episodes in online rows: each ends at the goal or after LIMIT steps."""
    ends, start = [], 0
    for i, position in enumerate(rows.next_obs[:, 0]):
        if position >= 1 or i - start == LIMIT - 1:
            ends.append(slice(start, i + 1))
            start = i + 1
    assert start == len(rows.obs), "whole episodes only"
    return ends


def test_online_rows(run_here, script, toy_file, tmp_path):
    """Arrival is a termination, the time limit is none; rewards are scaled; returns are those of
    the finished episode, in which nothing is added after a cut."""
    scaling = dict(reward_scale=2.0, reward_bias=0.5, gamma=0.9, online_steps=150)
    module = run_here(script, *quick(script, dataset=toy_file, run_dir="run", **scaling))
    rows = online_rows(module, tmp_path / "run")
    arrived = rows.next_obs[:, :1] >= 1
    assert torch.equal(rows.terminations, arrived.float())
    torch.testing.assert_close(rows.rewards, 2 * (arrived.float() - 1) + 0.5)
    torch.testing.assert_close(rows.next_obs[:, :1], rows.obs[:, :1] + 0.4 * rows.actions)
    lengths = []
    for episode in episodes_of(rows):
        obs, _, rewards, next_obs, terminations, mc_returns = (c[episode] for c in rows)
        assert torch.equal(obs[1:], next_obs[:-1])
        wanted = torch.zeros(1)
        for reward, found in zip(rewards.flip(0), mc_returns.flip(0)):
            wanted = reward + 0.9 * wanted
            torch.testing.assert_close(found, wanted)
        lengths.append((len(obs), bool(terminations[-1])))
    assert (LIMIT, False) in lengths and any(arrived for _, arrived in lengths), "both kinds"
    assert 150 <= len(rows.obs) < 150 + LIMIT, "the last episode is finished, then it stops"


@pytest.mark.parametrize(
    "room, settings",
    [
        (10**6, dict(offline_share=0.5)),
        (25, dict(offline_share=0.5, buffer_size=25)),
        (10**6, dict(offline_share=-1)),
        (N_SMALL + 5, dict(offline_share=-1, buffer_size=N_SMALL + 5)),
        (N_SMALL, dict(offline_share=-1, buffer_size=1)),
        (0, dict(offline_share=-1, online_steps=0)),
    ],
    ids=str,
)
def test_a_checkpoint_keeps_online_rows_alone(
    run_here, small_file, tmp_path, monkeypatch, room, settings
):
    """The last that the ring has room for, oldest first; never the dataset, which has its file."""
    module, added = load_script("awac"), []
    real = module.ReplayBuffer.add
    monkeypatch.setattr(
        module.ReplayBuffer, "add", lambda self, rows: added.append(rows) or real(self, rows)
    )
    run_here("awac", *quick("awac", dataset=small_file, run_dir="run", **settings))
    ring = read_checkpoint(tmp_path / "run")["buffer"]["online"]
    if settings["offline_share"] == -1:
        del added[0]  # the dataset
    added = torch.cat([ring[:0], *added])
    assert len(ring) == min(len(added), room)
    assert torch.equal(ring, added[len(added) - len(ring) :])

    dataset = module.load_task(module.Args(dataset=str(small_file), env_id="toy:Toy-v0")).rows
    assert len(dataset) == N_SMALL
    content = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    assert not any(row.numpy().tobytes() in content for row in dataset)
    assert all(row.numpy().tobytes() in content for row in ring), "so they would be found"


def test_seeds_of_episodes(run_here, script, toy_file):
    """Episode k's depends on the run's seed and on k, and on nothing else that happens."""

    def training_seeds(**settings):
        Toy.reset_seeds.clear()
        name = "-".join(map(str, settings.values()))
        run_here(script, *quick(script, dataset=toy_file, run_dir=name, **settings))
        # Every evaluation uses the same ones again.
        return [seed for seed in Toy.reset_seeds if Toy.reset_seeds.count(seed) == 1]

    one = training_seeds(seed=0)
    same = training_seeds(seed=0, eval_every_online=35, eval_episodes=3, offline_steps=80)
    other = training_seeds(seed=1)
    n = min(len(one), len(same))
    assert n > 3 and one[:n] == same[:n] and len(set(one)) == len(one)
    assert not set(one) & set(other)


VARIANTS = {
    "only online": dict(offline_steps=0),
    "only offline": dict(online_steps=0),
    "two updates a step": dict(utd=2),
    "no offline data online": dict(offline_share=0.0),
    "only offline data": dict(offline_share=1.0),
    "one buffer": dict(offline_share=-1),
    "small ring": dict(buffer_size=25),
    "one small buffer": dict(offline_share=-1, buffer_size=25),
    "ring shorter than an episode": dict(buffer_size=3),
    "no hidden layer is wider than 3": dict(actor_hidden=(3, 2), critic_hidden=(2, 3)),
    "seldom evaluated": dict(eval_every_offline=10**6, eval_every_online=10**6),
    "dictionaries as observations": dict(env_id="toy:DictToy-v0"),
    "normalised observations": dict(normalize_observations=True),
}
OF_ONE_SCRIPT = {
    "cql": {"a learned factor": dict(lagrange_gap=0.8)},
    "iql": {
        "dropout": dict(dropout=0.5, actor_hidden=(8, 4)),
        "a std for good": dict(fixed_log_std=-3.0),
    },
    "awac": {"several actions": dict(n_actions=4), "sharp weights": dict(awac_lambda=1e-6)},
}
CASES = [
    (SCRIPTS[(i + j) % len(SCRIPTS)], name, VARIANTS[name])
    for i, name in enumerate(VARIANTS)
    for j in range(2)
]
CASES += [(script, name, row[name]) for script, row in OF_ONE_SCRIPT.items() for name in row]


@pytest.mark.parametrize(
    "script, settings",
    [pytest.param(script, settings, id=f"{script}-{name}") for script, name, settings in CASES],
)
def test_variant(run_here, script, toy_file, tmp_path, monkeypatch, settings):
    """Each goes through to the end, with utd updates for each step of the environment."""
    module, updates = load_script(script), []
    real = module.Agent.update
    monkeypatch.setattr(module.Agent, "update", lambda *a: updates.append(1) or real(*a))
    run_here(script, *quick(script, dataset=toy_file, run_dir="run", **settings))
    settings = QUICK | dict(utd=1) | settings

    checkpoint = read_checkpoint(tmp_path / "run")
    last = read_events(tmp_path / "run")["eval/score"][-1][0]
    env_steps = last - settings["offline_steps"]
    slack = LIMIT if settings["online_steps"] else 1
    assert 0 <= env_steps - settings["online_steps"] < slack
    assert len(updates) == settings["offline_steps"] + settings["utd"] * env_steps
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["agent"].values())
    assert {"before", "after"} <= json.loads((tmp_path / "run/summary.json").read_text()).keys()


# --- Warm-up and normalisation --------------------------------------------------------------------


@pytest.fixture
def warm_up(monkeypatch):
    """Gives a script's agent a warm-up of 25 steps, which halves the dataset's share of batches;
    with a number, an exception ends the run at that step of exploration. Returns what happens:
    "begin", and "explore" and "update" for every step."""

    def warm_up(script: str, number: int | None = None) -> list[str]:
        agent, events = load_script(script).Agent, []

        def begin(self, buffer):
            events.append("begin")
            buffer.offline_share /= 2
            return 25

        def act(self, obs, generator=None):
            if generator is not None:
                events.append("explore")
                if events.count("explore") == number:
                    raise RuntimeError("for now")
            return real_act(self, obs, generator)

        monkeypatch.undo()
        real_act, update = agent.act, agent.update
        monkeypatch.setattr(agent, "begin_finetuning", begin)
        monkeypatch.setattr(agent, "act", act)
        monkeypatch.setattr(agent, "update", lambda *a: events.append("update") or update(*a))
        return events

    return warm_up


@pytest.mark.parametrize("utd", [1, 2])
def test_warm_up(run_here, script, toy_file, tmp_path, monkeypatch, warm_up, utd):
    """No update before, and then those of the steps after it; also in a run that fails in its first
    episode and in a later one. What begin_finetuning changes, it changes once."""
    settings = dict(offline_steps=5, eval_every_online=1000, utd=utd, offline_share=0.5)
    line = quick(script, dataset=toy_file, **settings)
    events = warm_up(script)
    monkeypatch.chdir(tmp_path)
    run_here(script, *line, "--run-dir=alone")
    first_update = events.index("update", 5)
    assert events.index("begin") == 5 and events.count("begin") == 1
    assert 25 < events[:first_update].count("explore") <= 25 + LIMIT
    alone = read_checkpoint(tmp_path / "alone")
    assert events.count("update") == 5 + utd * (alone["run"]["online_steps"] - 25)
    assert alone["buffer"]["offline_share"] == 0.25
    assert read_events(tmp_path / "alone")["train/return"][0][0] <= 5 + LIMIT

    for number, words_for_it in ((3, [*line, "--run-dir=failed"]), (17, ["--resume=failed"])):
        events = warm_up(script, number)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RuntimeError, match="for now"):
            run_here(script, *words_for_it)
        assert events.count("begin") == 1, "nothing of the first episode is saved"
    events = warm_up(script)
    monkeypatch.chdir(tmp_path)
    run_here(script, "--resume=failed")
    assert "begin" not in events
    assert same_bits(alone, read_checkpoint(tmp_path / "failed"))


def test_networks_see_normalised_observations(script):
    """In act and in update, whatever raw observations are given; weights learn as from data that
    somebody else has normalised."""
    agent, batch, noise = small_problem(load_script(script), normalize_observations=True)
    plain, *_ = small_problem(load_script(script))
    module = load_script(script)
    obs = 5 + 3 * batch.obs
    module.set_normalization(agent, obs)
    mean, std = obs.mean(0), obs.std(0, correction=0) + 1e-3
    torch.testing.assert_close(agent.obs_mean, mean)
    torch.testing.assert_close(agent.obs_std, std)
    raw = batch._replace(obs=obs, next_obs=2 * obs)
    normalised = batch._replace(obs=(obs - mean) / std, next_obs=(2 * obs - mean) / std)
    for generator in (None, 7):
        drawn = [generator and torch.Generator().manual_seed(generator) for _ in range(2)]
        action = agent.act(raw.obs, drawn[0])
        torch.testing.assert_close(action, plain.act(normalised.obs, drawn[1]))
    torch.testing.assert_close(agent.update(raw, noise), plain.update(normalised, noise))
    for found, wanted in zip(agent.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_act_takes_observations_of_any_precision(script):
    module = load_script(script)
    agent = small_problem(module, dtype=torch.float32)[0]
    obs = torch.linspace(-1, 1, 4, dtype=torch.float64)
    assert torch.equal(agent.act(obs), agent.act(obs.float()))
    assert agent.act(obs).dtype == torch.float32


def test_statistics_of_a_run(run_here, script, toy_file, tmp_path):
    """Those of the dataset's rows, saved with the weights; a resumed run has the same."""
    line = quick(script, dataset=toy_file, normalize_observations=True)
    module = run_here(script, *line, "--run-dir=run")
    agent = read_checkpoint(tmp_path / "run")["agent"]
    args = module.Args(dataset=str(toy_file), env_id="toy:Toy-v0")
    obs = module.load_task(args).rows[:, :2].double()
    torch.testing.assert_close(agent["obs_mean"].double(), obs.mean(0), rtol=1e-5, atol=1e-6)
    spread = obs.std(0, correction=0) + 1e-3
    torch.testing.assert_close(agent["obs_std"].double(), spread, rtol=1e-5, atol=1e-6)
    pretrained = read_checkpoint(tmp_path / "run", "pretrained.pt")["agent"]
    assert torch.equal(pretrained["obs_std"], agent["obs_std"])


# --- Other ways to start it -----------------------------------------------------------------------


def test_in_a_thread(run_here, toy_file, tmp_path):
    """Where signals cannot be taken over."""
    module = run_here("cql", *quick("cql", dataset=toy_file, run_dir="main"))
    line = quick("cql", dataset=toy_file, run_dir="thread")
    thread = threading.Thread(target=module.main, args=(line,))
    thread.start()
    thread.join()
    assert same_bits(read_checkpoint(tmp_path / "main"), read_checkpoint(tmp_path / "thread"))


NOTEBOOK = """
text = open({path!r}).read()
exec(text[: text.index("if __name__ ==")])
for line in {lines!r}:
    main(line)
assert "__file__" not in globals()
"""


def test_in_a_notebook(toy_file, tmp_path, script="cal_ql"):
    """In whose cells there is no __file__: a new run, and the same continued."""
    path = str(ROOT / f"{script}.py")
    line = quick(script, dataset=toy_file, offline_steps=5, online_steps=5)
    run_dir = "runs/notebook-toy-random-s0"
    lines = [line, ["--resume", run_dir, "--online-steps", "30"]]
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK.format(path=path, lines=lines)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert read_checkpoint(tmp_path / run_dir)["run"]["online_steps"] >= 30


def test_without_git(run_here, toy_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    run_here("cql", *quick("cql", dataset=toy_file, run_dir="run", online_steps=0))
    assert json.loads((tmp_path / "run" / "args.json").read_text())["commit"] == ""


def test_tracking(toy_file, tmp_path):
    """A run and its continuation are one to Weights & Biases, which gets all of the log."""
    pytest.importorskip("wandb")
    line = quick("cql", dataset=toy_file, run_dir="run", offline_steps=5, online_steps=5)
    offline = dict(WANDB_MODE="offline", WANDB_SILENT="true")
    for words_for_it in ([*line, "--track"], ["--resume=run", "--online-steps=30"]):
        done = run_script(ROOT / "cql.py", *words_for_it, cwd=tmp_path, **offline)
        assert done.status == 0, done.stderr
    name = (tmp_path / "run" / "wandb_id.txt").read_text()
    folders = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(folders) == 2 and all(path.name.endswith(f"-{name}") for path in folders)
    for folder in folders:
        content = (folder / f"run-{name}.wandb").read_bytes()
        assert b"eval/score" in content and b"train/return" in content


# --- The settings table ---------------------------------------------------------------------------


def test_every_row_and_its_flags(script):
    """A row is chosen by how the dataset's name begins; every flag goes before it."""
    module, filled = load_script(script), {"dataset": "", "run_dir": ""}
    for row, chosen in module.SETTINGS.items():
        for name in (f"{row}.hdf5", f"/data/{row}-other-v2.hdf5"):
            args = module.parse_args(["--dataset", name, "--gamma", "0.5", "--seed", "7"])
            assert module.row_of(name) == row
            expected = asdict(module.Args(**chosen)) | dict(gamma=0.5, seed=7)
            assert asdict(args) | filled == expected | filled
    for name in ("own.hdf5", "my-pen.hdf5"):
        args = module.parse_args(["--dataset", name])
        assert module.row_of(name) == "defaults"
        assert asdict(args) | filled == asdict(module.Args()) | filled


def test_row_is_recorded(run_here, toy_data, tmp_path):
    row = list(load_script("cql").SETTINGS)[-1]
    save(tmp_path / f"{row}-toy.hdf5", toy_data)
    run_here("cql", *quick("cql", dataset=f"{row}-toy.hdf5", run_dir="run"))
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["row"] == row
    assert record["settings"]["offline_steps"] == QUICK["offline_steps"]
