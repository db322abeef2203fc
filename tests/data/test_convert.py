"""Datasets of other layouts: made small here, converted, and read as the scripts read them.

Nothing is downloaded: of downloads only the failure is tested.
"""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import pytest
from conftest import quick
from scripts import OWN_FIXTURES, ROOT, load_script, rows_of_dataset
from toy import save

from benchmarks.data import convert, names
from benchmarks.data.convert import from_adroit, layout

SCRIPT = load_script("cal_ql")
INSTALL = "pip install -r requirements-convert.txt"
# They may be missing; ogbench is where there are no wheels of labmaze, which it needs.
needs_minari, needs_ogbench = (
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=INSTALL)
    for name in ("minari", "ogbench")
)
# What these print is about other things than the files.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    """Every test in its own folder, which all programs take for their user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()


@pytest.fixture
def refused(tmp_path, capsys):
    """Converts what has to be refused, in one line that says all of `named`, without a trace."""

    def check(line: str, *named: str) -> str:
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:  # anything else would be a traceback
            convert.main(line.split())
        message = capsys.readouterr().err
        assert stop.value.code == 2
        assert message.startswith("convert: ") and len(message.splitlines()) == 1, message
        for text in named:
            assert text in message
        assert {
            path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")
        } == before
        return message

    return check


def read(path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and attributes; every result has the same types and tells what was changed."""
    with h5py.File(path) as file:
        kinds = {
            key: (file[key].dtype, file[key].compression) for key in layout.AXES if key in file
        }
        attributes = names.attributes_of(file)
    for key, kind in kinds.items():
        wanted = bool if key in ("terminals", "timeouts") else np.float32
        assert kind == (wanted, "gzip"), key
    record = json.loads(attributes["converted"])
    assert record["source"] and record["changes"] and "numpy" in record["versions"]
    assert not [*Path(path).resolve().parent.glob("*.tmp")]
    return SCRIPT.read_dataset(str(path))[0], attributes


def batch(path, low=-1.0, high=1.0, env=None, **settings):
    """What the scripts make of a file, the columns by name; a box of actions, or an environment."""
    data, _ = SCRIPT.read_dataset(str(path))
    if env is None:
        box = gym.spaces.Box(low, high, data["actions"].shape[1:])
        observations = SimpleNamespace(shape=data["observations"].shape[1:])
        env = SimpleNamespace(observation_space=observations, env=SimpleNamespace(action_space=box))
        env.spec = SimpleNamespace(id="none", max_episode_steps=None)
    args = SCRIPT.Args(dataset=str(path), **settings)
    obs, act = data["observations"].shape[1], data["actions"].shape[1]
    rows = rows_of_dataset(SCRIPT, args, data, env)
    columns = SCRIPT.Batch(*rows.split([obs, act, 1, obs, 1, 1], 1))
    return SCRIPT.Batch(*(x.numpy() if x.shape[1] > 1 else x[:, 0].numpy() for x in columns))


def env_of(path):
    return SCRIPT.make_env(SCRIPT.Args(dataset=str(path)), SCRIPT.read_dataset(str(path))[1])


def bits(text: str) -> list[bool]:
    return [letter == "1" for letter in text]


# --- Minari ---------------------------------------------------------------------------------------


class Unsorted(gym.Env):
    """Observations whose parts are not in the order of their names."""

    parts = OrderedDict(
        z=gym.spaces.Box(-9, 9, (2, 2)),
        k=gym.spaces.Discrete(3),
        a=gym.spaces.Tuple([gym.spaces.Box(-9, 9, (1,)), gym.spaces.MultiBinary(2)]),
    )
    observation_space = gym.spaces.Dict(parts)
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self, setting=(), render_mode=None):
        self.setting = setting

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


gym.register("Unsorted-v0", "test_convert:Unsorted", max_episode_steps=9)


def episode(obs, ends: str, rewards=None, actions=None, terminated="") -> dict:
    """Of Minari: T steps for T + 1 observations; `ends` has 1 for truncations."""
    n = len(ends)
    return dict(
        observations=obs,
        actions=np.zeros((n, 1), np.float32) if actions is None else np.array(actions),
        rewards=[0.0] * n if rewards is None else rewards,
        terminations=bits(terminated or "0" * n),
        truncations=bits(ends),
        infos={},
    )


def made_by_minari(name: str, episodes, **settings):
    import minari
    from minari.data_collector import EpisodeBuffer

    settings.setdefault("env", "Pendulum-v1")
    buffers = [EpisodeBuffer(**episode) for episode in episodes]
    return minari.create_dataset_from_buffers(name, buffers, **settings)


def numbered(start: int, n: int) -> np.ndarray:
    """Observations (n, 3) that begin with start, start + 1 ..."""
    return np.arange(start, start + n)[:, None] + np.array([0.0, 0.25, 0.5])


PENDULUM = [
    dict(obs=numbered(10, 4), ends="000", terminated="001", rewards=[1.0, 2.0, 4.0]),
    dict(obs=numbered(20, 4), ends="001", rewards=[0.5, 0.5, 0.5]),
    dict(obs=numbered(30, 3), ends="00"),  # nobody says how it ended
    dict(obs=numbered(40, 3), ends="01", terminated="01", actions=[[2.0], [-2.0]]),  # by both
]


@needs_minari
def test_minari_episodes(capsys):
    """The last step of a task counts, also as the file's last; that of a time limit is left out."""
    made_by_minari("test/flat-v0", [episode(**e) for e in PENDULUM])
    convert.main(["minari", "test/flat-v0"])
    path = "cache/minari-test-flat-v0.hdf5"
    data, attributes = read(path)
    assert data["observations"][:, 0].tolist() == [10, 11, 12, 20, 21, 22, 30, 31, 40, 41]
    assert data["next_observations"][:, 0].tolist() == [11, 12, 13, 21, 22, 23, 31, 32, 41, 42]
    assert data["terminals"].tolist() == bits("0010000001")
    assert data["timeouts"].tolist() == bits("0000010100")
    assert data["rewards"][:6].tolist() == [1, 2, 4, 0.5, 0.5, 0.5]
    assert attributes["env_id"] == "Pendulum-v1"
    assert json.loads(attributes["env_kwargs"]) == {"max_episode_steps": 200}
    assert json.loads(attributes["observation_order"]) == [["observation", 3]]
    assert "ref_min_score" not in attributes and "ref_max_score" not in attributes
    found = batch(path, env=env_of(path), gamma=0.5)
    assert found.obs[:, 0].tolist() == [10, 11, 12, 20, 21, 30, 40, 41]
    assert found.next_obs[:, 0].tolist() == [11, 12, 13, 21, 22, 31, 41, 42]
    assert found.terminations.tolist() == bits("00100001")
    assert found.mc_returns[:5].tolist() == [3, 4, 4, 0.75, 0.5]
    assert found.actions[-2:].tolist() == pytest.approx([0.99999, -0.99999])  # of the box -2 .. 2
    told = capsys.readouterr().out
    assert "10 transitions, 2 terminals, 2 timeouts" in told
    _, *changes, command = (line.strip() for line in told.splitlines())
    assert json.loads(attributes["converted"])["changes"] == changes
    assert command == "python cal_ql.py --dataset minari-test-flat-v0"


@needs_minari
def test_another_folder(capsys):
    """It is made, and the command names the file."""
    made_by_minari("flat-v0", [episode(**PENDULUM[1])])
    convert.main(["minari", "flat-v0", "--out", "new folder/x.hdf5"])
    assert len(read("new folder/x.hdf5")[0]["rewards"]) == 3
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == "python cal_ql.py --dataset 'new folder/x.hdf5'"


@needs_minari
def test_minari_flags_within_an_episode():
    """Taken as they are; a terminal is no timeout."""
    made_by_minari("x-v0", [episode(numbered(0, 5), "0110", terminated="0010")])
    convert.main(["minari", "x-v0", "--out", "x.hdf5"])
    data, _ = read("x.hdf5")
    assert data["terminals"].tolist() == bits("0010")
    assert data["timeouts"].tolist() == bits("0101")


@needs_minari
def test_minari_flattens_as_the_environment_does(capsys):
    """Minari's own space has the keys sorted, its file too; FlattenObservation has not."""
    env = gym.make("Unsorted-v0", setting=(1, (2, 3)), render_mode="rgb_array")
    flat, steps = gym.wrappers.FlattenObservation(env), [env.reset(seed=3)[0]]
    wanted = [flat.observation(steps[0])]
    for _ in range(4):
        steps.append(env.step(env.action_space.sample())[0])
        wanted.append(flat.observation(steps[-1]))
    z, k, a = ([step[key] for step in steps] for key in "zka")
    obs = dict(z=np.array(z), k=np.array(k), a=tuple(map(np.array, zip(*a))))
    actions = np.zeros((4, 2), np.float32)
    made_by_minari("dict-v0", [episode(obs, "0001", actions=actions)], env=env)
    convert.main(["minari", "dict-v0"])
    path = "cache/minari-dict-v0.hdf5"
    data, attributes = read(path)
    np.testing.assert_array_equal(data["observations"], np.float32(wanted[:-1]))
    np.testing.assert_array_equal(data["next_observations"], np.float32(wanted[1:]))
    order = [["z", 4], ["k", 3], ["a/0", 1], ["a/1", 2]]
    assert json.loads(attributes["observation_order"]) == order
    assert "z (4), k (3), a/0 (1), a/1 (2)" in capsys.readouterr().out
    assert attributes["env_id"] == "test_convert:Unsorted-v0"
    # What JSON does not know is a list, and rendering is nobody's business.
    kwargs = {"setting": [1, [2, 3]], "max_episode_steps": 9}
    assert json.loads(attributes["env_kwargs"]) == kwargs
    assert env_of(path).unwrapped.setting == [1, [2, 3]]


@pytest.fixture(scope="module")
def ant_maze():
    pytest.importorskip("gymnasium_robotics")
    return gym.make("gymnasium_robotics:AntMaze_UMaze-v4", continuing_task=False)


@needs_minari
def test_minari_robotics(ant_maze):
    """As D4RL/antmaze: a dict, an environment of another package, and another for evaluation."""
    rng, spaces = np.random.default_rng(0), ant_maze.observation_space.spaces
    obs = {key: rng.normal(size=(4, *space.shape)) for key, space in spaces.items()}
    actions = rng.uniform(-1, 1, (3, 8)).astype(np.float32)
    settings = dict(env=gym.make("AntMaze_UMaze-v4"), ref_min_score=-2.0, ref_max_score=8.0)
    spec = ant_maze.spec
    spec.max_episode_steps = 77
    made_by_minari("ant-v0", [episode(obs, "001", actions=actions)], eval_env=spec, **settings)
    convert.main(["minari", "ant-v0"])
    path = "cache/minari-ant-v0.hdf5"
    data, attributes = read(path)
    wanted = [np.concatenate([obs[key][t] for key in sorted(obs)]) for t in range(3)]
    np.testing.assert_array_equal(data["observations"], np.float32(wanted))
    assert attributes["env_id"] == "gymnasium_robotics:AntMaze_UMaze-v4"
    env = env_of(path)
    assert env.spec.max_episode_steps == 77 and not env.unwrapped.continuing_task
    assert env.observation_space.shape == data["observations"].shape[1:]
    assert "ref_min_score" not in attributes, "scores are compared with D4RL's alone"
    assert len(batch(path, env=env).obs) == 2


def pendulum(*wrappers: str, **settings) -> gym.Env:
    """Pendulum, whose own box is [-2, 2], in wrappers of gymnasium's by name, from the inside."""
    env = gym.make("Pendulum-v1", **settings)
    for name in wrappers:
        bounds = (-1, 1) if name == "RescaleAction" else ()
        env = getattr(gym.wrappers, name)(env, *bounds)
    return env


# What was done by the dataset's actions -1, 0.5 and 1.5: by the wrappers, told by gymnasium itself.
ACTED = {
    "nothing": ((), [-1, 0.5, 1.5]),
    "flat": (("FlattenObservation", "RecordEpisodeStatistics"), [-1, 0.5, 1.5]),
    "rescaled": (("RescaleAction",), [-2, 1, 3]),
    "clipped": (("ClipAction",), [-1, 0.5, 1.5]),
    "clipped, then rescaled": (("RescaleAction", "ClipAction"), [-2, 1, 2]),
}


@needs_minari
@pytest.mark.parametrize("name", ACTED)
def test_minari_actions_as_the_environment_saw_them(name, capsys):
    """The environment is named without its wrappers, and the actions are what came out of them: in
    the scripts they stand for the same pushes."""
    wrappers, wanted = ACTED[name]
    actions = np.array([[-1], [0.5], [1.5]], np.float32)
    recorded = episode(numbered(0, 4), "001", actions=actions)
    made_by_minari("x-v0", [recorded], env=pendulum(*wrappers, render_mode="rgb_array"))
    convert.main(["minari", "x-v0"])
    data, attributes = read("cache/minari-x-v0.hdf5")
    np.testing.assert_allclose(data["actions"][:, 0], wanted, rtol=1e-6)
    assert attributes["env_id"] == "Pendulum-v1"
    assert json.loads(attributes["env_kwargs"]) == {"max_episode_steps": 200}
    told = capsys.readouterr().out
    for wrapper in ("RescaleAction", "ClipAction"):
        assert (f"actions are what {wrapper} made of them" in told) == (wrapper in wrappers)
    found = batch("cache/minari-x-v0.hdf5", env=env_of("cache/minari-x-v0.hdf5"))
    own = np.clip(np.array(wanted[:2]) / 2, -0.99999, 0.99999)  # the last is a time limit's
    np.testing.assert_allclose(found.actions[:2], own, rtol=1e-6)


def played(env: gym.Env, n: int = 30, seed: int = 0) -> dict:
    """An episode of the environment, by random actions of its own box."""
    env.action_space.seed(seed)
    obs, actions, rewards = [env.reset(seed=seed)[0]], [], []
    for _ in range(n):
        actions.append(env.action_space.sample())
        *found, _, _, _ = env.step(actions[-1])
        obs.append(found[0])
        rewards.append(float(found[1]))
    ends = "0" * (n - 1) + "1"
    return episode(np.array(obs), ends, rewards=rewards, actions=np.array(actions))


@needs_minari
def test_minari_rescaled_through_a_script(run_here, tmp_path, capsys):
    """Collected with actions in [-1, 1] where the environment has [-2, 2]: the rows are the
    environment's own transitions, and the printed command trains on them as it stands."""
    env = pendulum("RescaleAction")
    made_by_minari("x-v0", [played(env, seed=k) for k in range(3)], env=env)
    line = "minari x-v0 --out x.hdf5"
    convert.main(line.split())
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == "python cal_ql.py --dataset x.hdf5"
    data, _ = read("x.hdf5")
    assert np.abs(data["actions"]).max() > 1.5
    env = gym.make("Pendulum-v1").unwrapped
    for row in (0, 40):
        env.reset()
        x, y, speed = data["observations"][row]
        env.state = np.arctan2(y, x), speed
        following, reward, *_ = env.step(data["actions"][row])
        np.testing.assert_allclose(following, data["next_observations"][row], atol=1e-4)
        assert reward == pytest.approx(data["rewards"][row], abs=1e-4)
    few = quick("cal_ql", env_id=None, eval_episodes=1, offline_steps=2, online_steps=1)
    run_here("cal_ql", *command.split()[2:], *few, "--run-dir", "run")
    assert (tmp_path / "run" / "summary.json").exists()


@needs_minari
def test_minari_in_another_box(capsys, refused):
    """No wrapper is named, but the actions lie in another box than the environment's: they are
    moved, where both have bounds."""
    recorded = episode(numbered(0, 4), "001", actions=[[-1.0], [0.5], [1.0]])
    box = gym.spaces.Box(-1, 1, (1,), np.float32)
    made_by_minari("x-v0", [recorded], action_space=box)
    convert.main(["minari", "x-v0"])
    data, attributes = read("cache/minari-x-v0.hdf5")
    assert data["actions"][:, 0].tolist() == [-2, 1, 2]
    assert attributes["env_id"] == "Pendulum-v1"
    assert "actions are moved from [-1, 1]^1 to [-2, 2]^1" in capsys.readouterr().out
    made_by_minari("y-v0", [recorded], action_space=gym.spaces.Box(-np.inf, np.inf, (1,)))
    refused("minari y-v0", "y-v0: its actions lie in [-inf, inf]^1", "in [-2, 2]^1")


@needs_minari
def test_minari_without_an_environment(capsys):
    """Wrapped in what the scripts could not know, not registered by its module's import, missing
    here, or named nowhere: then the command says what is to be given."""
    limits = dict(ref_min_score=0.0, ref_max_score=1.0)
    made = pendulum()
    spaces = dict(observation_space=made.observation_space, action_space=made.action_space)
    gym.register("Elsewhere-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv")
    elsewhere = gym.make("Elsewhere-v0")
    for name, settings, said in (
        ("rest", dict(env=pendulum("NormalizeObservation"), **limits), "in NormalizeObservation"),
        ("none", dict(env=None, **spaces), "the dataset names no environment"),
        ("gone", dict(env=elsewhere), "does not register Elsewhere-v0"),
    ):
        made_by_minari(f"{name}-v0", [episode(**PENDULUM[0])], **settings)
        if name == "gone":
            del gym.registry["Elsewhere-v0"]
        convert.main(["minari", f"{name}-v0"])
        attributes = read(f"cache/minari-{name}-v0.hdf5")[1]
        assert "env_id" not in attributes and "ref_min_score" not in attributes
        *changes, command, what = capsys.readouterr().out.splitlines()
        assert said in changes[-1] and "give --env-id" in changes[-1]
        assert command == f"python cal_ql.py --dataset minari-{name}-v0 --env-id MODULE:ID"
        assert "observations of 3 and actions of 1 numbers" in what
        assert ("actions lie in [-2, 2]^1" in " ".join(changes)) == (name == "none")


@needs_minari
def test_minari_wrapped_and_missing(refused, tmp_path):
    """What the wrappers did cannot be told without the environment."""
    made_by_minari("x-v0", [episode(**PENDULUM[0])], env=pendulum("RescaleAction"))
    about = tmp_path / "minari/x-v0/data/metadata.json"
    about.write_text(about.read_text().replace("PendulumEnv", "NoSuchEnv"))
    refused("minari x-v0", "Pendulum-v1 cannot be made here", "RescaleAction changed", "install it")


BAD_MINARI = {
    "no episode": ([], "not one episode"),
    "NaN": ([episode(numbered(0, 3) * [[1], [np.nan], [1]], "01")], "row 1 of observations"),
    "inf": ([episode(numbered(0, 3), "01", rewards=[0, 1e300])], "row 1 of rewards"),
    "too few observations": ([episode(numbered(0, 2), "01")], "3 observations for 2 actions"),
    "too few rewards": ([episode(numbered(0, 3), "01", rewards=[0.0])], "rewards"),
    "other widths": (
        [episode(**PENDULUM[0]), episode(numbered(0, 3)[:, :2], "01")],
        "episode 1: a row of observations has the shape (2,), before (3,)",
    ),
    "flat actions": (
        [episode(numbered(0, 3), "01", actions=[0.0, 1.0])],
        "actions (float64, (2,))",
    ),
}


@needs_minari
@pytest.mark.parametrize("fault", BAD_MINARI)
def test_bad_minari(refused, fault):
    episodes, named = BAD_MINARI[fault]
    made_by_minari("test/bad-v0", episodes)
    refused("minari test/bad-v0", "test/bad-v0", named)


@needs_minari
def test_minari_discrete(refused):
    spaces = dict(
        observation_space=gym.spaces.Box(-9, 9, (3,)), action_space=gym.spaces.Discrete(2)
    )
    made_by_minari("bad-v0", [episode(numbered(0, 3), "01", actions=[0, 1])], env=None, **spaces)
    refused("minari bad-v0", "bad-v0: its actions are Discrete(2)")


@needs_minari
def test_damaged_minari(refused, tmp_path):
    made_by_minari("bad-v0", [episode(**PENDULUM[0])])
    file = tmp_path / "minari/bad-v0/data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    refused("minari bad-v0", "bad-v0: ", f"delete {tmp_path / 'minari/bad-v0'}")
    (file.parent / "metadata.json").write_text("{}")
    refused("minari bad-v0", "bad-v0: ")


@needs_minari
def test_minari_not_there(tmp_path):
    """In a process of its own, since what is offline is decided at the start of one."""
    line = [sys.executable, "-m", "benchmarks.data.convert", "minari", "D4RL/door/human-v2"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(line, env=env, capture_output=True, text=True)
    assert shown.returncode == 2 and shown.stdout == "" and "Traceback" not in shown.stderr
    last = shown.stderr.splitlines()[-1]
    assert last.startswith("convert: D4RL/door/human-v2: Offline"), "a download was tried"
    assert str(tmp_path / "minari/D4RL/door/human-v2") in last and "connection" in last
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "package, line", [("minari", "minari x-v0"), ("ogbench", "ogbench a-b-singletask-v0")]
)
def test_package_missing(refused, monkeypatch, package, line):
    monkeypatch.setitem(sys.modules, package, None)
    refused(line, package, INSTALL)


# --- OGBench --------------------------------------------------------------------------------------

ANT = "antmaze-medium-navigate"
GOAL = (20.0, 20.0)  # of the standard task in the medium maze


def locomotion(**changed) -> dict[str, np.ndarray]:
    """Episodes of 5, 5 and 3 rows; at the goal in rows 2, 3 and 9."""
    rng, n = np.random.default_rng(0), 13
    qpos = rng.normal(size=(n, 15))
    qpos[[2, 3, 9], :2] = np.array(GOAL) + [[0.1, 0], [0, -0.4], [0.1, 0.1]]
    obs = np.arange(n, dtype=np.float32)[:, None] + np.zeros(29, np.float32)
    actions = rng.uniform(-1, 1, (n, 8)).astype(np.float32)
    terminals = np.array(bits("0000100001001"))
    data = dict(observations=obs, actions=actions, terminals=terminals, qpos=qpos)
    return data | dict(qvel=rng.normal(size=(n, 14))) | changed


@needs_ogbench
def test_ogbench(capsys):
    """As ogbench itself has it: an episode's last row, at the goal or not, is none of its own."""
    import ogbench

    np.savez(f"{ANT}-v0.npz", **locomotion())
    name = f"{ANT}-singletask-v0"
    convert.main(["ogbench", f"{ANT}-v0.npz", "--name", name])
    path = f"cache/ogbench-{name}.hdf5"
    data, attributes = read(path)
    assert data["observations"][:, 0].tolist() == list(range(13))
    assert data["terminals"].tolist() == bits("0011000000000")
    assert data["timeouts"].tolist() == bits("0000100001001")
    assert np.flatnonzero(data["rewards"] == 0).tolist() == [2, 3, 9]
    assert set(data["rewards"]) == {-1, 0}
    assert attributes["env_id"] == "ogbench:antmaze-medium-singletask-v0"
    assert "2 rows at the goal" in capsys.readouterr().out
    found = batch(path, env=env_of(path), gamma=0.5)
    assert found.obs[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert found.next_obs[:, 0].tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 11, 12]
    assert found.mc_returns[:3].tolist() == [-1.5, -1, 0]
    # The same by the way that ogbench offers to others.
    env = ogbench.make_env_and_datasets(name, env_only=True)
    wanted = ogbench.load_dataset(f"{ANT}-v0.npz", add_info=True)
    ogbench.relabel_utils.relabel_dataset(env.spec.id, env, wanted)
    np.testing.assert_array_equal(found.obs, wanted["observations"])
    np.testing.assert_array_equal(found.next_obs, wanted["next_observations"])
    np.testing.assert_allclose(found.actions, wanted["actions"], atol=2e-5)
    np.testing.assert_array_equal(found.rewards, wanted["rewards"])
    np.testing.assert_array_equal(found.terminations, 1 - wanted["masks"])


@needs_ogbench
def test_ogbench_cut_off():
    """A last episode without its end has one where the file ends."""
    np.savez("x.npz", **locomotion(terminals=np.array(bits("0000100001000"))))
    convert.main(["ogbench", "x.npz", "--name", f"{ANT}-singletask-v0", "--out", "x.hdf5"])
    assert read("x.hdf5")[0]["timeouts"].tolist() == bits("0000100001001")


@needs_ogbench
def test_ogbench_by_name(tmp_path):
    """In OGBench's own folder; the name says which of the tasks."""
    (tmp_path / ".ogbench/data").mkdir(parents=True)
    qpos = np.zeros((4, 21))
    qpos[2, 14:17] = 0.425, -0.1, 0.02  # where the cube is to be in task 1
    data = dict(observations=np.zeros((4, 28)), actions=np.zeros((4, 5)), qpos=qpos)
    path = tmp_path / ".ogbench/data/cube-single-play-v0.npz"
    np.savez(path, terminals=np.array(bits("0001")), **data)
    for task, wanted in {1: bits("0010"), 2: bits("0000")}.items():
        convert.main(["ogbench", f"cube-single-play-singletask-task{task}-v0"])
        path = f"cache/ogbench-cube-single-play-singletask-task{task}-v0.hdf5"
        data, attributes = read(path)
        assert data["terminals"].tolist() == wanted
        assert attributes["env_id"] == f"ogbench:cube-single-singletask-task{task}-v0"


@needs_ogbench
def test_bad_ogbench(refused, tmp_path):
    name, path = f"{ANT}-singletask-v0", tmp_path / "x.npz"
    refused(f"ogbench {ANT}-v0", f"{ANT}-v0: ", "different goals", f"give {name}")
    refused(f"ogbench {ANT}-v0.npz", f"give --name {name}")
    refused(f"ogbench {name}", f".ogbench/data/{ANT}-v0.npz: no such file", "download_datasets")
    path.write_bytes(b"PK no archive")
    refused("ogbench x.npz --name no-maze-singletask-v0", "no-maze-singletask-v0", "such as")
    refused(f"ogbench x.npz --name {name}", "x.npz")
    bad = {
        "qpos": lambda data: data.pop("qpos"),
        "observations": lambda data: data.update(observations=data["observations"][:, :28]),
        "actions": lambda data: data.update(actions=data["actions"][:, :7]),
        "rewards": lambda data: data.update(qpos=data["qpos"][:-1]),
        "row 3 of observations": lambda data: data["observations"].__setitem__(3, np.nan),
        "allow_pickle": lambda data: data.update(actions=np.array([Trap("run")], object)),
    }
    for named, change in bad.items():
        change(data := locomotion())
        np.savez(path, **data)
        refused(f"ogbench x.npz --name {name}", str(path.name), named)
    np.savez(path, **locomotion())
    path.write_bytes(path.read_bytes()[:-200])
    refused(f"ogbench x.npz --name {name}", "x.npz")


# --- Adroit ---------------------------------------------------------------------------------------


class Trap:
    """Its pickle asks for a file to be made."""

    def __init__(self, name: str):
        self.name = name

    def __reduce__(self):
        return open, (self.name, "w")


def hand_trajectories() -> tuple[dict, list[dict], dict[str, np.ndarray]]:
    """The settings, what the authors' loader was given, and what it made of that."""
    arrays = dict(np.load(OWN_FIXTURES / "return_to_go.npz"))
    meta = json.loads(str(arrays["meta"]))["hand"]["pen"]
    keys = ("observations", "next_observations", "actions", "rewards")
    names = [f"expert{i}" for i in range(meta["n_expert"])] + [
        f"bc{i}" for i in range(meta["n_bc"])
    ]
    given = [{key: arrays[f"hand/pen/in/{name}/{key}"] for key in keys} for name in names]
    out = {k.split("/")[-1]: v for k, v in arrays.items() if k.startswith("hand/pen/out/")}
    return meta, given, out


def check_hand(path):
    """The scripts have of it, to 1e-6, what the authors' code had."""
    meta, _, wanted = hand_trajectories()
    names = ("gamma", "reward_scale", "reward_bias")
    found = batch(path, failure_reward=-1.0, **{name: meta[name] for name in names})
    for key, column in dict(
        observations=found.obs,
        actions=found.actions,
        rewards=found.rewards,
        next_observations=found.next_obs,
        dones=found.terminations,
        mc_returns=found.mc_returns,
    ).items():
        np.testing.assert_allclose(column, wanted[key], rtol=1e-6, atol=1e-7, err_msg=key)


def as_pickled(name: str, trajectories: list, dump=None):
    """An .npy file of Python objects; `dump` makes its pickle, by default numpy."""
    array = np.empty(len(trajectories), object)
    array[:] = trajectories
    if dump is None:
        np.save(name, array, allow_pickle=True)
    else:
        with open(name, "wb") as file:
            header = dict(descr="|O", fortran_order=False, shape=array.shape)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(dump(array))


def as_expert(trajectory: dict, rewards_after=(0.0, -1.0)) -> dict:
    """As experts' are: observations are dicts, rewards go on, terminals mean nothing."""
    result = {key: trajectory[key] for key in ("actions",)}
    for key in ("observations", "next_observations"):
        rows = [OrderedDict(state_observation=x, image=np.zeros(0)) for x in trajectory[key]]
        result[key] = rows
    result["rewards"] = np.append(trajectory["rewards"], rewards_after)
    result["terminals"] = [True] * len(trajectory["rewards"])
    info = [{"text": "x", "success": np.float64(1), "flag": np.bool_(True)}]
    return result | dict(agent_infos=info, env_infos=np.array([{}, {"a": np.array(["b"])}], object))


def as_bc(trajectory: dict) -> dict:
    """As behaviour cloning's are: rewards and terminals have an axis more."""
    rewards = trajectory["rewards"][:, None]
    return trajectory | dict(rewards=rewards, terminals=np.zeros_like(rewards, bool))


def test_adroit_is_what_the_authors_make():
    """In memory: trajectories without a success dropped, the others cut after the last one."""
    _, given, wanted = hand_trajectories()
    data = from_adroit.adroit_rows(given)
    assert not data["timeouts"].any()
    assert data["terminals"].tolist() == wanted["dones"].astype(bool).tolist()
    save("pen.hdf5", data)
    check_hand("pen.hdf5")


DUMPS = {
    "as numpy does": None,
    "protocol 2": lambda array: pickle.dumps(array, protocol=2),
    "protocol 5": lambda array: pickle.dumps(array, protocol=5),
    "numpy's old names": lambda array: pickle.dumps(array, 3).replace(
        b"numpy._core", b"numpy.core"
    ),
}


@pytest.mark.parametrize("how", DUMPS)
def test_adroit_files(small, capsys, how):
    """The two files of a task, as the authors have them."""
    meta, given, _ = hand_trajectories()
    experts, bc = given[: meta["n_expert"]], given[meta["n_expert"] :]
    as_pickled("pen2_sparse.npy", [as_expert(x) for x in experts], DUMPS[how])
    as_pickled("pen_bc_sparse4.npy", [as_bc(x) for x in bc], DUMPS[how])
    convert.main("adroit pen2_sparse.npy pen_bc_sparse4.npy --task pen".split())
    _, attributes = read("cache/pen-binary-v0.hdf5")
    check_hand("cache/pen-binary-v0.hdf5")
    assert attributes["env_id"] == "benchmarks.envs:pen-binary-v0"
    assert "5 of 7 trajectories" in capsys.readouterr().out


@pytest.fixture
def small(monkeypatch):
    """Hands of as few numbers as in these tests."""
    for task, sizes in dict(pen=(7, 3), door=(2, 1)).items():
        monkeypatch.setitem(from_adroit.HANDS, task, sizes)


def test_adroit_of_another_hand(refused):
    as_pickled("x.npy", [simple()])
    refused("adroit x.npy --task door", "x.npy", "(2, 1)", "--task door, (39, 28)")


def test_sizes_of_the_hands_are_those_of_their_tasks():
    for task, sizes in from_adroit.HANDS.items():
        env = gym.make(f"benchmarks.envs:{task}-binary-v0")
        assert (*env.observation_space.shape, *env.action_space.shape) == sizes


def simple(n=3, **changed) -> dict:
    obs = np.arange(2.0 * n).reshape(n, 2)
    data = dict(observations=obs, next_observations=obs + 1, actions=np.zeros((n, 1)))
    return data | dict(rewards=np.array([-1.0] * (n - 1) + [0])) | changed


def test_adroit_arrays_of_all_kinds(small):
    """Columns first, bytes swapped, integers, lists of numbers or arrays, arrays of objects."""
    plain = simple()
    obs, rewards = plain["observations"], plain["rewards"]
    objects = np.empty(3, object)
    objects[:] = [*obs]
    kinds = [
        plain,
        plain | dict(observations=np.asfortranarray(obs), rewards=rewards.astype(">f4")),
        plain | dict(observations=obs.astype(np.int64), rewards=[-1, -1, np.float32(0)]),
        plain | dict(observations=[*obs.astype(">i2")], rewards=[[-1], [-1], [0]]),
        plain | dict(observations=objects, rewards=np.array([-1, -1, 0], object)),
    ]
    as_pickled("x.npy", kinds)
    convert.main("adroit x.npy --task door --out x.hdf5".split())
    data, _ = read("x.hdf5")
    for start in range(0, 15, 3):
        np.testing.assert_array_equal(data["observations"][start : start + 3], obs)
        assert data["rewards"][start : start + 3].tolist() == [-1, -1, 0]


def forged() -> bytes:
    """A pickle by which numpy itself would take the number 42 for the address of an object."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    class Forged:
        def __reduce__(self):
            make = np._core.multiarray._reconstruct
            return (
                make,
                (np.ndarray, (0,), b"b"),
                (1, (1,), Dtype(), False, (42).to_bytes(8, "little")),
            )

    return pickle.dumps(Forged())


def test_pickled_code_is_not_run(refused, tmp_path):
    target, here = tmp_path / "made", "x.npy"
    for trap in (
        [Trap(str(target))],
        [simple(env_infos=[{"deep": [Trap(str(target))]}])],
        [simple(rewards=Trap(str(target)))],
    ):
        as_pickled(here, trap)
        refused(f"adroit {here} --task pen", f"{here}: names io.open, which", "do not trust it")
        assert not target.exists()
    np.load(here, allow_pickle=True)[0]["rewards"].close()
    assert target.exists(), "the trap is a trap"
    for text in (b"cos\nsystem\n(S'true'\ntR.", b"cnumpy\nload\n.", b"cbuiltins\ngetattr\n."):
        as_pickled(here, [0], lambda array, text=text: text)
        refused(f"adroit {here} --task pen", "names ")
    as_pickled(here, [0], lambda array: forged())
    refused(f"adroit {here} --task pen", here)


BAD_ADROIT = {
    "no success": ([simple(rewards=-np.ones(3))], "no trajectory with a success"),
    "dense rewards": ([simple(rewards=np.array([-1, 0.5, 0]))], "rewards must be -1 or 0"),
    "two columns of rewards": ([simple(rewards=np.zeros((3, 2)))], "rewards must be"),
    "rewards go on": ([as_bc(simple()) | dict(rewards=np.zeros((4, 1)))], "rows differ"),
    "rewards too short": ([as_expert(simple(rewards=np.zeros(2)), ())], "rows differ"),
    "fewer actions": ([simple(), simple(actions=np.zeros((2, 1)))], "trajectory 1: rows differ"),
    "no actions": ([{"observations": np.zeros((3, 1))}], "'actions'"),
    "no state": ([simple(observations=[{"image": 0}] * 3)], "'state_observation'"),
    "NaN": ([simple(), simple(observations=np.full((3, 2), np.nan))], "trajectory 1: row 0"),
    "widths": ([simple(), simple(actions=np.zeros((3, 2)))], "has the shape (2,), before (1,)"),
    "complex": ([simple(actions=np.zeros((3, 1), complex))], "type c16"),
    "ragged": ([simple(observations=[[1.0], [1.0, 2.0], [1.0]])], "trajectory 0"),
    "text": ([simple(actions=np.array([[b"x"]] * 3))], "actions (|S1, (3, 1)) must be numbers"),
    "no dicts": ([1, 2], "must hold dicts"),
    "nothing": ([], "must hold dicts"),
}


@pytest.mark.parametrize("fault", BAD_ADROIT)
def test_bad_adroit(refused, fault):
    trajectories, named = BAD_ADROIT[fault]
    as_pickled("x.npy", trajectories)
    refused("adroit x.npy --task pen", "x.npy", named)


def test_bad_npy(refused, tmp_path):
    as_pickled("whole.npy", [simple()])
    content = (tmp_path / "whole.npy").read_bytes()
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    for bad in (b"", content[:60], content[:-20], b"no npy at all", file.getvalue()):
        (tmp_path / "x.npy").write_bytes(bad)
        refused("adroit x.npy --task pen", "x.npy")
    refused("adroit nowhere.npy --task pen", "nowhere.npy")
    refused("adroit --task pen", "no file")


# --- Adroit: demonstrations with dense rewards, whose success is recomputed -----------------------

DOOR_ANGLE = 28  # its place in an observation of the door


def door(angles, start=0.0) -> dict:
    """A demonstration as DAPG has them: T observations for T actions, dense rewards, the state that
    it began in. Row t has the number start + t, and the door open by angles[t] (rad)."""
    obs = np.full((len(angles), 39), float(start)) + np.arange(len(angles))[:, None]
    obs[:, DOOR_ANGLE] = angles
    rewards = np.linspace(-0.3, 17.2, len(angles))
    state = dict(qpos=np.zeros(30), qvel=np.zeros(30), door_body_pos=np.zeros(3))
    data = dict(observations=obs, actions=np.zeros((len(angles), 28)), rewards=rewards)
    return data | dict(init_state_dict=state)


DEMONSTRATIONS = [
    door([0, 1.3, 1.36, 1.2, 1.4, 1.3, 0], start=100),  # open at rows 2 and 4
    door([0, 0.5, 1.34], start=200),  # never
    door([0, 1.35], start=300),  # in the last observation
    door([1.4, 0], start=400),  # before the first action, which is nobody's doing
]


def check_door(path):
    """The success of a step shows in the observation behind it; the last row has none."""
    data, attributes = read(path)
    assert data["observations"][:, 0].tolist() == [100, 101, 102, 103, 300]
    assert data["next_observations"][:, 0].tolist() == [101, 102, 103, 104, 301]
    assert data["rewards"].tolist() == [-1, 0, -1, 0, 0]
    assert data["terminals"].tolist() == bits("01011") and not data["timeouts"].any()
    assert attributes["env_id"] == "benchmarks.envs:door-binary-v0"
    found = batch(path, env=env_of(path), gamma=0.5, failure_reward=-1.0)
    assert found.obs[:, 0].tolist() == [100, 101, 102, 103, 300], "the last terminal counts, too"
    assert found.mc_returns.tolist() == [-1, 0, -1, 0, 0]


def by_python_2(demonstrations: list[dict]) -> bytes:
    """Their arrays as Python 2 pickles them, in which bytes are texts."""

    def array(x) -> bytes:
        sizes = b"".join(b"K" + bytes([n]) for n in x.shape)
        code = f"{x.dtype.kind}{x.dtype.itemsize}".encode()
        dtype = b"cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R"
        dtype += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        content = b"T" + x.nbytes.to_bytes(4, "little") + x.tobytes()
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        return start + b"(K\x01(" + sizes + b"t" + dtype + b"\x89" + content + b"tb"

    keys = ("observations", "actions", "rewards")
    dicts = (
        b"".join(b"U" + bytes([len(key)]) + key.encode() + array(x[key]) for key in keys)
        for x in demonstrations
    )
    return b"\x80\x02](" + b"".join(b"}(" + content + b"u" for content in dicts) + b"e."


PICKLED = {"Python 2": by_python_2}
PICKLED |= {f"protocol {n}": lambda x, n=n: pickle.dumps(x, protocol=n) for n in (2, 4, 5)}


@pytest.mark.parametrize("how", PICKLED)
def test_dapg(tmp_path, capsys, how):
    """A plain pickle, no .npy file. It is not taken for the paper's data, but has its settings."""
    (tmp_path / "door-v0_demos.pickle").write_bytes(PICKLED[how](DEMONSTRATIONS))
    convert.main("adroit door-v0_demos.pickle --task door".split())
    check_door("cache/door-binary-v0_demos.hdf5")
    told = capsys.readouterr().out
    assert "rewards of door-v0_demos.pickle are success" in told and "2 of 4 traj" in told
    assert told.endswith("python cal_ql.py --dataset door-binary-v0_demos\n")
    assert SCRIPT.row_of("door-binary-v0_demos") == "door-binary"


def test_dense_rewards_of_d4rl():
    """Its door-human-v1 and the like are these demonstrations, the episodes' ends in `timeouts`."""
    keys = ("observations", "actions", "rewards")
    data = {key: np.concatenate([x[key] for x in DEMONSTRATIONS]) for key in keys}
    ends = np.cumsum([len(x["rewards"]) for x in DEMONSTRATIONS]) - 1
    data["terminals"], data["timeouts"] = np.zeros(len(data["rewards"])), None
    for last in (True, False):  # whether the file's last row is marked as well
        rows = ends if last else ends[:-1]
        data["timeouts"] = np.isin(np.arange(len(data["rewards"])), rows)
        save("door-human-v1.hdf5", data)
        convert.main("adroit door-human-v1.hdf5 --task door --overwrite".split())
        check_door("cache/door-binary-human-v1.hdf5")


def test_bad_dapg(refused, tmp_path):
    def write(*demonstrations):
        (tmp_path / "x.pickle").write_bytes(pickle.dumps([*demonstrations]))

    write(door([0, 1.4]))
    for task, sizes in (("pen", "(45, 24)"), ("relocate", "(39, 30)")):
        refused(f"adroit x.pickle --task {task}", "x.pickle, trajectory 0", f"{task}, {sizes}")
    write(door([0, 1.4]), door([0, 1.4]) | dict(actions=np.zeros((3, 28))))
    refused("adroit x.pickle --task door", "x.pickle, trajectory 1", "as many of each")
    write({"observations": np.zeros((2, 39))})
    refused("adroit x.pickle --task door", "'actions'")
    write(door([0, 1.0]))
    refused("adroit x.pickle --task door", "no trajectory with a success")
    write(door([0, 1.4]) | dict(env_infos=Trap(str(tmp_path / "made"))))
    refused("adroit x.pickle --task door", "x.pickle: names io.open, which", "do not trust it")
    assert not (tmp_path / "made").exists()
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(DEMONSTRATIONS)[:-100])
    refused("adroit x.pickle --task door", "x.pickle: ")
    save("x.hdf5", {"observations": np.zeros((2, 39)), "actions": np.zeros((2, 28))})
    refused("adroit x.hdf5 --task door", "x.hdf5: holds no terminals")


# --- robomimic ------------------------------------------------------------------------------------

PARTS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 5}


def demonstration(file, number: int, dones: str, next_obs=True):
    """T rows; the t-th of part k is 100 number + t + k / 10."""
    n, group = len(dones), f"data/demo_{number}"
    steps = 100 * number + np.arange(n + 1)[:, None]
    for k, (key, size) in enumerate(PARTS.items()):
        values = steps + k / 10 + np.zeros(size)
        file[f"{group}/obs/{key}"] = values[:-1]
        if next_obs:
            file[f"{group}/next_obs/{key}"] = values[1:]
    file[f"{group}/obs/image"] = np.zeros((n, 2, 2, 3), np.uint8)
    file[f"{group}/actions"] = np.zeros((n, 7))
    file[f"{group}/rewards"] = np.arange(n)
    file[f"{group}/dones"] = np.array(bits(dones), np.int64)


@pytest.fixture
def robomimic(tmp_path):
    """demo_10 comes after demo_2, whose end is no done."""
    path = tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        demonstration(file, 10, "001", next_obs=False)
        demonstration(file, 2, "000")
        demonstration(file, 0, "01")
        file["data"].attrs["env_args"] = '{"env_name": "Lift"}'
        file["mask/train"] = np.array([b"demo_0"])
    return path


def test_robomimic(robomimic, capsys):
    convert.main(["robomimic", "low_dim.hdf5"])
    path = "cache/robomimic-low_dim.hdf5"
    data, attributes = read(path)
    assert data["observations"][:, 0].tolist() == [0, 1, 200, 201, 202, 1000, 1001, 1002]
    assert data["next_observations"][:, 0].tolist() == [1, 2, 201, 202, 203, 1001, 1002, 1002]
    ends = np.cumsum([*PARTS.values()])
    np.testing.assert_allclose(data["observations"][0, ends - 1], [0, 0.1, 0.2, 0.3])
    assert data["terminals"].tolist() == bits("01000001")
    assert data["timeouts"].tolist() == bits("00001000")
    assert json.loads(attributes["observation_order"]) == [list(item) for item in PARTS.items()]
    assert "Lift" in attributes["env_args"] and "env_id" not in attributes
    told = capsys.readouterr().out
    assert "of 1 demonstrations" in told and "robosuite's; give --env-id" in told
    assert "--dataset robomimic-low_dim --env-id MODULE:ID\n" in told
    assert "observations of 14 and actions of 7 numbers" in told
    found = batch(path)
    assert found.obs[:, 0].tolist() == [0, 1, 200, 201, 1000, 1001, 1002]
    assert found.rewards.tolist() == [0, 1, 0, 1, 0, 1, 2]


def test_robomimic_obs_keys(robomimic):
    convert.main("robomimic low_dim.hdf5 --obs-keys object robot0_eef_pos --out x.hdf5".split())
    data, attributes = read("x.hdf5")
    assert json.loads(attributes["observation_order"]) == [["object", 5], ["robot0_eef_pos", 3]]
    np.testing.assert_allclose(data["observations"][0, [0, 5]], [0.3, 0])


def test_bad_robomimic(refused, robomimic, tmp_path):
    content = robomimic.read_bytes()
    line = "robomimic low_dim.hdf5"
    refused(f"{line} --obs-keys nothing", "low_dim.hdf5: holds no data/demo_0/obs/nothing")
    refused(f"{line} --obs-keys image", "data/demo_0/obs/image has the shape (2, 2, 2, 3)")
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["dones"] = np.zeros(2)

    def shorter(file):
        file["data/demo_0/actions"] = np.zeros((1, 7))

    changes = {
        "holds no data/demo_0/actions": lambda file: None,
        "actions (float64, (1, 7)) does not go with observations (2, 14)": shorter,
        "type object": lambda file: file.create_dataset("data/demo_0/actions", data=["a", "b"]),
        "type |S1": lambda file: file.create_dataset(
            "data/demo_0/actions", data=np.array([b"a", b"b"])
        ),
        "has the type float32": lambda file: file.__setitem__(
            "data/demo_0/actions", h5py.Empty("f4")
        ),
        "before (6,)": lambda file: file.__setitem__("data/demo_0/actions", np.zeros((2, 6))),
        "not finite": lambda file: file.__setitem__("data/demo_0/actions", np.full((2, 7), np.inf)),
    }
    for named, change in changes.items():
        robomimic.write_bytes(content)
        with h5py.File(robomimic, "r+") as file:
            del file["data/demo_0/actions"]
            change(file)
        refused(line, "low_dim.hdf5", named)
    for bad in (b"", b"no HDF5", content[: len(content) // 2]):
        robomimic.write_bytes(bad)
        refused(line, "low_dim.hdf5")
    refused("robomimic other.hdf5", "other.hdf5: not one episode")
    refused("robomimic nowhere.hdf5", "nowhere.hdf5")


# --- Ends -----------------------------------------------------------------------------------------


def maze(**changed) -> dict[str, np.ndarray]:
    """Episodes of 4, 3 and 3 rows, 20 m apart, the second with a terminal at its end; the timeouts
    are a row late, and one too many."""
    x = np.array([0, 0.5, 1, 1.5, 20, 20.5, 21, 0, 0.9, 1.8])
    obs = np.stack([np.arange(10) / 100, x, -x], 1)
    data = dict(observations=obs, actions=np.zeros((10, 2)), rewards=np.arange(10.0))
    data |= dict(terminals=bits("0000001000"), timeouts=bits("0000100101"))
    return {key: np.array(value) for key, value in (data | changed).items()}


def test_ends_by_jumps(capsys):
    save(
        "antmaze-umaze-v0.hdf5",
        maze(**{"infos/goal": np.arange(10)}),
        env_id="a:b",
        ref_max_score=1,
    )
    convert.main("ends antmaze-umaze-v0.hdf5 --columns 1 2 --jump 1.5".split())
    data, attributes = read("cache/antmaze-umaze-v0-ends.hdf5")
    assert data["timeouts"].tolist() == bits("0001000001")
    assert data["terminals"].tolist() == bits("0000001000")
    assert attributes["env_id"] == "a:b" and attributes["ref_max_score"] == 1
    with h5py.File("cache/antmaze-umaze-v0-ends.hdf5") as file:
        assert file["infos/goal"][()].tolist() == list(range(10)), "nothing else is dropped"
        assert file["infos/goal"].dtype == np.int64
    assert "1 moved, 0 added, 1 removed, 1 kept" in capsys.readouterr().out
    found = batch("cache/antmaze-umaze-v0-ends.hdf5")
    assert found.rewards.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(found.next_obs[:3, 1], [0.5, 1, 1.5])


def test_ends_by_next_observations(capsys):
    """Where they are given they decide, but for float32's rounding; a jump may be a teleporter."""
    data = maze(timeouts=bits("0000000000"))
    obs = data["observations"] = data["observations"] * 100
    data["next_observations"] = np.roll(obs, -1, 0) * (1 + 1e-7)
    data["next_observations"][[3, 6, 9], 2] += 0.001
    save("x.hdf5", data)
    convert.main("ends x.hdf5".split())
    data, _ = read("cache/x-ends.hdf5")
    assert data["timeouts"].tolist() == bits("0001000001")
    assert "0 moved, 2 added, 0 removed, 0 kept" in capsys.readouterr().out
    save("y.hdf5", maze(next_observations=np.roll(maze()["observations"], -1, 0)))
    convert.main("ends y.hdf5".split())
    assert read("cache/y-ends.hdf5")[0]["timeouts"].tolist() == bits("0000000001")


NAMES = ["antmaze-umaze-v0.hdf5"]
if importlib.util.find_spec("d4rl"):
    NAMES.append("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5")


@pytest.mark.parametrize("name", NAMES)
def test_ends_leads_to_the_task(capsys, name):
    """The maze of that name is the second version's, and the file is found by its name."""
    save(name, maze())
    convert.main(["ends", name, "--columns", "1"])
    _, attributes = read("cache/antmaze-umaze-v0-ends.hdf5")
    assert attributes["env_id"] == "benchmarks.envs:antmaze-umaze-v2"
    assert "cal_ql.py --dataset antmaze-umaze-v0-ends" in capsys.readouterr().out
    assert names.find("antmaze-umaze-v0-ends")[0].exists()


def test_ends_without_old_ones():
    """Columns of one axis, no timeouts, and a single episode without any jump."""
    data = maze(rewards=np.zeros((10, 1)), terminals=np.zeros((10, 1)))
    del data["timeouts"]
    save("x.hdf5", data)
    convert.main("ends x.hdf5 --columns 0 --out y.hdf5".split())
    assert read("y.hdf5")[0]["timeouts"].tolist() == bits("0000000001")
    assert len(batch("y.hdf5").obs) == 9


def test_bad_ends(refused, tmp_path):
    refused("ends nowhere.hdf5", "nowhere.hdf5")
    save("x.hdf5", maze())
    refused("ends x.hdf5 --columns 3", "--columns (3,)")
    refused("ends x.hdf5 --columns -1", "--columns (-1,)")
    refused("ends x.hdf5 --columns 1 --jump 0", "--jump 0.0 above 0")
    refused("ends x.hdf5 --columns 1 --jump 0.1", "x.hdf5: after most rows columns (1,) jump")
    refused("ends x.hdf5 --out x.hdf5", "x.hdf5: exists")
    for key, array in {
        "rewards": np.zeros(9),
        "actions": np.zeros(10),
        "observations": np.full((10, 3), np.nan),
        "next_observations": np.zeros((10, 2)),
        "timeouts": np.zeros((10, 2)),
    }.items():
        save("x.hdf5", maze(**{key: array}))
        refused("ends x.hdf5", "x.hdf5", key)
    save("x.hdf5", {key: array[:0] for key, array in maze().items()})
    refused("ends x.hdf5", "x.hdf5", "observations")
    data = maze()
    del data["terminals"]
    save("x.hdf5", data)
    refused("ends x.hdf5", "x.hdf5: holds no terminals, but ")


# --- Join -----------------------------------------------------------------------------------------


def rows_from(start: int, terminals: str, timeouts: str | None = None, **more) -> dict:
    """Arrays of D4RL's layout whose observations begin with start, start + 1 ..."""
    n = len(terminals)
    data = dict(observations=numbered(start, n), actions=np.zeros((n, 1)), rewards=np.arange(n))
    data["terminals"] = np.array(bits(terminals))
    return data | ({"timeouts": np.array(bits(timeouts))} if timeouts else {}) | more


def test_join(capsys):
    """At the seams an episode ends: no row is taken for the one before another file's first."""
    save("a.hdf5", rows_from(10, "0100", "0000"), env_id="Pendulum-v1", ref_max_score=2, origin="a")
    save("b.hdf5", rows_from(20, "001", "000"), ref_max_score=2, origin="b")
    save("c.hdf5", rows_from(30, "000", "100"), env_id="Pendulum-v1", ref_max_score=2, origin="b")
    convert.main("join a.hdf5 b.hdf5 c.hdf5 --out all.hdf5".split())
    data, attributes = read("all.hdf5")
    assert data["observations"][:, 0].tolist() == [10, 11, 12, 13, 20, 21, 22, 30, 31, 32]
    assert data["terminals"].tolist() == bits("0100001000")
    assert data["timeouts"].tolist() == bits("0001000101")
    assert "next_observations" not in data
    assert attributes["env_id"] == "Pendulum-v1" and attributes["ref_max_score"] == 2
    assert "origin" not in attributes
    told = capsys.readouterr().out
    assert "a.hdf5 (4), b.hdf5 (3), c.hdf5 (3)" in told and "attribute origin" in told
    assert "Pendulum-v1, not named in b.hdf5" in told
    found = batch("all.hdf5", env=env_of("all.hdf5"))
    assert found.obs[:, 0].tolist() == [10, 11, 12, 20, 21, 22, 31]
    assert found.next_obs[[0, 2, 3, 4, 6], 0].tolist() == [11, 13, 21, 22, 32]


def test_join_what_not_all_have(capsys):
    """next_observations are made where they are missing; other arrays are left out."""
    own = dict(next_observations=numbered(11, 3) + 0.125)
    infos = {"infos/goal": np.arange(3), "infos/qpos": np.ones((3, 2))}
    save("a.hdf5", rows_from(10, "001", "000", **own, **infos), env_id="Pendulum-v1")
    more = {"infos/goal": np.arange(3, 6)}
    save("b.hdf5", rows_from(20, "000", "010", **more), env_id="Pendulum-v1")
    convert.main("join a.hdf5 b.hdf5 --out all.hdf5".split())
    data, _ = read("all.hdf5")
    found = data["next_observations"][:, 0].tolist()
    assert found == [11.125, 12.125, 13.125, 21, 22, 22]
    with h5py.File("all.hdf5") as file:
        assert file["infos/goal"][()].tolist() == [*range(6)] and "infos/qpos" not in file
    told = capsys.readouterr().out
    assert "next_observations of b.hdf5" in told and "not all files have them: infos/qpos" in told


@pytest.mark.parametrize("how", ["the environment's", "of its kwargs", "given"])
def test_join_without_timeouts(how):
    """A time limit counts from the last terminal, as in the scripts, which would take it for the
    environment's no longer once there are timeouts."""
    kwargs = {} if how == "the environment's" else {"max_episode_steps": 4}
    about = dict(env_id="toy:Toy-v0", env_kwargs=kwargs) if how != "given" else {}
    n = 10 if how == "the environment's" else 4
    terminals = "01" + "0" * (n + 2)
    save("a.hdf5", rows_from(0, terminals), **about)
    save("b.hdf5", rows_from(100, "001", "000"), **about)
    line = "join a.hdf5 b.hdf5 --out all.hdf5" + " --limit 4" * (how == "given")
    convert.main(line.split())
    data, _ = read("all.hdf5")
    wanted = "00" + "0" * (n - 1) + "1" + "01" + "000"  # at the limit, and where the file ends
    assert data["timeouts"].tolist() == bits(wanted)
    assert data["terminals"].tolist() == bits(terminals + "001")


def test_bad_join(refused, tmp_path):
    save("a.hdf5", rows_from(0, "001", "000"), env_id="a:A-v0")
    save("b.hdf5", rows_from(0, "001", "000"), env_id="b:B-v0")
    out = "--out all.hdf5"
    refused("join a.hdf5 b.hdf5", "give --out")
    refused(f"join a.hdf5 {out}", "two files or more")
    refused(f"join a.hdf5 nowhere.hdf5 {out}", "nowhere.hdf5")
    refused(f"join a.hdf5 b.hdf5 {out}", "different env_id", "a.hdf5: a:A-v0, b.hdf5: b:B-v0")
    save("b.hdf5", rows_from(0, "001", "000"), env_id="a:A-v0", env_kwargs={"size": 2})
    save("c.hdf5", rows_from(0, "001", "000"), env_id="a:A-v0", env_kwargs={"size": 3})
    refused(f"join b.hdf5 c.hdf5 {out}", "different env_kwargs")
    save("b.hdf5", rows_from(0, "001", "000") | dict(actions=np.zeros((3, 2))), env_id="a:A-v0")
    refused(f"join a.hdf5 b.hdf5 {out}", "b.hdf5: a row of actions has the shape (2,)", "(1,)")
    save("b.hdf5", rows_from(0, "000"))
    save("c.hdf5", rows_from(0, "000", "000"))
    refused(f"join b.hdf5 c.hdf5 {out}", "b.hdf5: has no timeouts", "--limit")
    save("b.hdf5", rows_from(0, "000"), env_id="no_such_module:A-v0")
    refused(f"join b.hdf5 c.hdf5 {out}", "no_such_module:A-v0", "--limit")
    content = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").write_bytes(content[: len(content) // 2])
    refused(f"join a.hdf5 c.hdf5 {out}", "a.hdf5")


# --- What all have in common ----------------------------------------------------------------------


def test_existing_file(refused, tmp_path):
    """Refused before the input is looked at; --overwrite replaces it, also the input itself."""
    save("x.hdf5", maze())
    (tmp_path / "y.hdf5").write_text("precious")
    refused("ends nowhere.hdf5 --out y.hdf5", "--out y.hdf5: exists", "--overwrite")
    convert.main("ends x.hdf5 --columns 1 --out y.hdf5 --overwrite".split())
    convert.main("ends x.hdf5 --columns 1 --out x.hdf5 --overwrite".split())
    assert read("x.hdf5")[0]["timeouts"].tolist() == read("y.hdf5")[0]["timeouts"].tolist()


def test_no_half_written_file(refused, tmp_path, monkeypatch):
    save("x.hdf5", maze())
    (tmp_path / "file").write_text("")
    refused("ends x.hdf5 --columns 1 --out file/y.hdf5", "--out file/y.hdf5", "can be written")

    def full(*_, **__):
        raise OSError("No space left\non device")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    refused("ends x.hdf5 --columns 1 --out y.hdf5", "No space left on device")


def test_as_a_user_starts_it(tmp_path):
    """In a process of its own: a file, and a refusal."""
    save("x.hdf5", maze())
    for line, status in {"ends x.hdf5 --columns 1": 0, "ends nowhere.hdf5": 2, "ends": 2}.items():
        shown = subprocess.run(
            [sys.executable, "-m", "benchmarks.data.convert", *line.split()],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert shown.returncode == status and "Traceback" not in shown.stderr
        assert (shown.stderr == "") == (status == 0)
    assert read("cache/x-ends.hdf5")[0]["timeouts"].any()
