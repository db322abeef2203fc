"""What the tests of the rebuilt tasks share: the old engine's trajectories, D4RL's own code, draws.

D4RL's classes cannot be imported without gym and mujoco-py. They are run out of their files all the
same, with stand-ins for what they import (`d4rl_module`) and on today's engine (`simulation`).
"""

import ast
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from benchmarks.data import names

OLD = dict(
    np.load(Path(__file__).parent / "trajectories.npz")
)  # of MuJoCo 2.3.7, see make_trajectories.py


def still(env):
    return np.zeros(env.action_space.shape, np.float32)


def errors(env, name, prepare=lambda env, name: None, steps=None) -> np.ndarray:
    """The largest error of qpos after each step of a trajectory of the old engine.

    prepare: sets what the trajectory's reset had drawn, but for qpos and qvel.
    """
    env.reset(seed=0)
    prepare(env, name)
    env.set_state(OLD[f"{name}/qpos0"], OLD[f"{name}/qvel0"])
    found = []
    for action, qpos in zip(OLD[f"{name}/actions"][:steps], OLD[f"{name}/qpos"]):
        env.step(action)
        found.append(np.abs(env.data.qpos - qpos).max())
    return np.array(found)


def arrays(model) -> dict[str, np.ndarray]:
    """All numbers of a compiled model, but for the tree that speeds up the search for contacts."""
    pairs = {key: getattr(model, key) for key in dir(model) if not key.startswith(("_", "bvh"))}
    pairs |= {f"opt.{key}": getattr(model.opt, key) for key in dir(model.opt) if key[0] != "_"}
    return {
        key: np.array(value)
        for key, value in pairs.items()
        if isinstance(value, (int, float, np.ndarray)) and np.asarray(value).dtype.kind in "biuf"
    }


NAMES = ("name", "nname", "nbuffer", "signature")  # of bodies, geoms...; not of what they do


def differing(model, other, ignored=NAMES) -> set[str]:
    """Which numbers of two models differ."""
    ours, theirs = arrays(model), arrays(other)
    assert ours.keys() == theirs.keys() and {"body_mass", "geom_size", "opt.timestep"} < set(ours)
    return {
        key
        for key, values in ours.items()
        if not key.startswith(ignored) and not np.array_equal(values, theirs[key])
    }


def course(env, seed) -> np.ndarray:
    """Observations of an episode's start and of 20 random actions, always the same ones."""
    actions = np.random.default_rng(0).uniform(-1, 1, (20, *env.action_space.shape))
    return np.array([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


# --- Draws ----------------------------------------------------------------------------------------


def check_quartiles(samples, quartiles) -> None:
    """Of each column, to 0.08 of their spread; no column goes with another."""
    samples, (low, _, high) = np.array(samples), quartiles
    found = np.quantile(samples, [0.25, 0.5, 0.75], 0)
    assert np.abs(found.T - quartiles).max() < 0.16 * (high - low)
    assert np.abs(np.corrcoef(samples.T) - np.eye(samples.shape[1])).max() < 0.2


def check_uniform(samples, low, high) -> None:
    """Independent, within the bounds and up to them."""
    shares = (np.array(samples) - low) / (np.array(high) - low)
    assert shares.min() >= -1e-9 and shares.max() <= 1 + 1e-9
    assert shares.min(0).max() < 0.03 and shares.max(0).min() > 0.97
    check_quartiles(shares, [0.25, 0.5, 0.75])


def check_normal(samples, deviation) -> None:
    """Independent, around 0; hundreds of samples, the farthest at some 3 deviations."""
    samples = np.array(samples) / deviation
    farthest = np.abs(samples).max(0)
    assert 2 < farthest.min() and farthest.max() < 6
    check_quartiles(samples, [-0.674, 0, 0.674])


# --- D4RL -----------------------------------------------------------------------------------------


def d4rl(name: str):
    """The path of a file of the package d4rl; without it the test, or the module, is skipped."""
    try:
        return names.d4rl_file(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error), allow_module_level=True)


def d4rl_module(name: str, **imported) -> SimpleNamespace:
    """A module of D4RL's, run out of its file without its imports: these are given instead."""
    path = d4rl(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(path.read_text())
        tree.body = [x for x in tree.body if not isinstance(x, (ast.Import, ast.ImportFrom))]
        code = compile(tree, str(path), "exec")
    names = dict(np=np, print=lambda *_: None, __file__=str(path), __name__=path.stem) | imported
    exec(code, names)
    return SimpleNamespace(**names)


def registrations(name: str, **imported) -> dict[str, dict]:
    """What a module of D4RL's registers with gym, by id."""
    found = {}
    d4rl_module(name, register=lambda **entry: found.update({entry["id"]: entry}), **imported)
    return found


class Ignorant:
    """A base class that takes everything and does nothing."""

    def __init__(self, *_, **__):
        pass


class Scripted:
    """A generator for D4RL's code and ours at once, which draw in parts of other sizes.

    shares: size of a part -> where its numbers lie between the bounds that are asked for.
    """

    def __init__(self, shares: dict, normal=None):
        self.shares, self.normal = shares, normal

    def uniform(self, low=0.0, high=1.0, size=None):
        return low + self.shares[size] * (high - low)

    def standard_normal(self, size):
        assert self.normal.shape == (size,)
        return self.normal

    randn = standard_normal


def simulation(load) -> type:
    """What gym's MujocoEnv, and the one that D4RL's kitchen has, did for D4RL's environments.

    load(path) -> the model.
    """

    class Simulation:
        def __init__(self, path, frame_skip, **_):
            self.model = load(path)
            self.data, self.frame_skip = mujoco.MjData(self.model), frame_skip
            self.sim = SimpleNamespace(
                model=self.model,
                data=self.data,
                reset=lambda: mujoco.mj_resetData(self.model, self.data),
                forward=lambda: mujoco.mj_forward(self.model, self.data),
            )
            self.init_qpos, self.init_qvel = self.data.qpos.copy(), self.data.qvel.copy()
            self.np_random = np.random.RandomState(0)
            low, high = np.float32(self.model.actuator_ctrlrange.T)
            self.action_space = gym.spaces.Box(low, high)
            self.observation_space, self.obs_dim = None, 1
            self.dt = self.model.opt.timestep * frame_skip

        def reset(self):
            self.sim.reset()
            return self.reset_model()

        def set_state(self, qpos, qvel):
            self.data.qpos[:], self.data.qvel[:] = qpos, qvel
            self.sim.forward()

        def do_simulation(self, ctrl, n_frames):
            self.data.ctrl[:] = ctrl
            mujoco.mj_step(self.model, self.data, n_frames)

        def get_body_com(self, name):
            return self.data.body(name).xpos

        def state_vector(self):
            return np.concatenate([self.data.qpos, self.data.qvel])

    return Simulation
