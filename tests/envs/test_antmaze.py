"""The ant's mazes: beside D4RL's own classes, moved as by the old engine, and number by number."""

import copy
import os
import pickle
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import physics
import pytest
from gymnasium.utils.env_checker import check_env
from physics import course, d4rl, d4rl_module, differing, errors, still

from benchmarks import envs
from benchmarks.envs import antmaze, old_engine

d4rl("locomotion/assets/ant.xml")  # without the ant itself nothing here can be run

PLAIN = dict(legacy_contacts=False, legacy_capsules=False)
GOAL = {"umaze": (0, 8), "medium": (20, 20), "large": (32, 24)}  # centre of its cell, m
WALLS = {"umaze": 18, "medium": 38, "large": 62}
LIMIT = {"umaze": 700, "medium": 1000, "large": 1000}
DATA = {
    "umaze": ("umaze", "umaze-diverse"),
    "medium": ("medium-play", "medium-diverse"),
    "large": ("large-play", "large-diverse"),
}
IDS = {f"antmaze-{data}-v2": maze for maze in DATA for data in DATA[maze]}
LEGS = ["hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3", "hip_4", "ankle_4"]
DRIVEN = LEGS[6:] + LEGS[:6]  # an action begins with leg 4


@pytest.fixture(params=GOAL)
def maze(request) -> str:
    return request.param


@pytest.fixture
def env(maze):
    env = antmaze.AntMaze(maze)
    env.reset(seed=0)
    return env


@pytest.fixture
def large():
    env = antmaze.AntMaze("large")
    env.reset(seed=0)
    return env


def freeze(env, monkeypatch):
    """From now on nothing moves in its steps."""
    monkeypatch.setattr(env.unwrapped, "do_simulation", lambda ctrl, n_frames: None)


# --- D4RL's own classes ---------------------------------------------------------------------------

MAZE_CODE = dict(ET=ET, os=os, deepcopy=copy.deepcopy, gym=SimpleNamespace(Env=object))
MAPS = d4rl_module("locomotion/maze_env.py", **MAZE_CODE)
REGISTERED = physics.registrations("locomotion/__init__.py", maze_env=MAPS)


@pytest.fixture
def their_file(tmp_path):
    """Where D4RL's environment writes its model, ant and walls."""
    return tmp_path / "ant.xml"


@pytest.fixture
def theirs(maze, their_file):
    """D4RL's environment, with contacts and capsules of today."""
    temporary = SimpleNamespace(mkstemp=lambda text, suffix: (0, str(their_file)))
    code = d4rl_module(
        "locomotion/ant.py",
        os=os,
        goal_reaching_env=d4rl_module("locomotion/goal_reaching_env.py"),
        maze_env=d4rl_module("locomotion/maze_env.py", tempfile=temporary, **MAZE_CODE),
        mujoco_env=SimpleNamespace(MujocoEnv=physics.simulation(mujoco.MjModel.from_xml_path)),
        mujoco_goal_env=SimpleNamespace(__file__=str(d4rl("locomotion/mujoco_goal_env.py"))),
        mujoco_py=SimpleNamespace(get_version=lambda: "2.1.0"),
        offline_env=SimpleNamespace(OfflineEnv=physics.Ignorant),
        utils=SimpleNamespace(EzPickle=physics.Ignorant),
        wrappers=d4rl_module("locomotion/wrappers.py", Env=object, Box=physics.Ignorant),
    )
    return code.make_ant_maze_env(**REGISTERED[f"antmaze-{DATA[maze][0]}-v2"]["kwargs"])


def test_the_ids_are_d4rls():
    """Limits, mazes and settings; play and diverse differ in nothing."""
    assert {name for name in envs.NAMES if name.startswith("antmaze")} == set(IDS)
    assert {name for name in REGISTERED if name.startswith("antmaze") and "v2" in name} == set(IDS)
    for name, maze in IDS.items():
        entry, env = REGISTERED[name], gym.make(f"benchmarks.envs:{name}")
        assert entry["max_episode_steps"] == env.spec.max_episode_steps == LIMIT[maze]
        cells = ["".join(str(cell).upper() for cell in row) for row in entry["kwargs"]["maze_map"]]
        assert env.unwrapped.maze == tuple(cells) == antmaze.MAZES[maze]
        wanted = dict(reward_type="sparse", non_zero_reset=False, eval=True, v2_resets=True)
        wanted["maze_size_scaling"] = antmaze.SCALE
        assert wanted.items() <= entry["kwargs"].items()
        assert type(env.unwrapped) is antmaze.AntMaze and env.spec.kwargs == {"maze": maze}


def test_the_model_is_d4rls(maze, theirs, their_file):
    """Every number but names and colours: of the file that D4RL's code writes."""
    ours = antmaze.AntMaze(maze, **PLAIN).model
    different = differing(ours, mujoco.MjModel.from_xml_path(str(their_file)))
    assert different == {"geom_rgba"}
    assert ours.ngeom == 14 + WALLS[maze]
    np.testing.assert_array_equal(theirs.data.qpos, ours.qpos0)


def test_steps_beside_d4rls(maze, theirs):
    """The same actions, some beyond the bounds: observation, reward and end, the goal included."""
    env = antmaze.AntMaze(maze, **PLAIN)
    obs, info = env.reset(seed=0)
    theirs.set_target_goal(info["goal"])
    rng, ended = np.random.default_rng(0), []
    for step in range(60):
        if step % 10 == 0:  # sometimes near the goal, in a step or after it
            qpos = env.data.qpos.copy()
            qpos[:2] = info["goal"] + rng.uniform(-0.6, 0.6, 2) * (step >= 20) + (step < 20)
            for each in (env, theirs):
                each.set_state(qpos, env.data.qvel.copy())
        action = rng.uniform(-1.2, 1.2, 8)
        obs, reward, terminated, truncated, _ = env.step(action)
        their_obs, their_reward, done, _ = theirs.step(action)
        np.testing.assert_allclose(obs, their_obs, atol=1e-10)  # they round the torques otherwise
        assert (reward, terminated, truncated) == (their_reward, done, False)
        ended.append(terminated)
    assert 10 < sum(ended) < 50


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_resets_beside_d4rls(maze, theirs, share, monkeypatch):
    """The same draws: goal, positions and velocities. The quaternion was normalised by the engine
    then; here the code does it."""
    rng = np.random.default_rng(0)
    normal, shares = rng.standard_normal(14), {15: rng.uniform(size=15), 2: share, None: share}
    draws = physics.Scripted(shares, normal)
    monkeypatch.setattr(np.random, "uniform", draws.uniform)  # which theirs takes for the goal
    env = antmaze.AntMaze(maze, **PLAIN)
    env.np_random = theirs.wrapped_env.np_random = draws
    obs, info = env.reset()
    wanted = theirs.reset()
    norm = np.linalg.norm(wanted[3:7])
    assert abs(norm - 1) > 1e-3
    wanted[3:7] /= norm
    np.testing.assert_array_equal(obs, wanted)
    np.testing.assert_array_equal(obs[15:], 0.1 * normal)
    np.testing.assert_allclose(info["goal"], theirs.target_goal, rtol=1e-15)
    np.testing.assert_allclose(info["goal"], np.array(GOAL[maze]) + 1.5 * share, rtol=1e-15)
    assert env.data.time == 0


# --- The model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_follows_the_old_engine(seed):
    """On the floor and, with seeds 5 and 7, at a wall. The old engine had today's capsules; those
    of before were never run with bindings for Python."""
    env = antmaze.AntMaze("large", legacy_capsules=False)
    assert errors(env, f"ant{seed}", steps=120).max() < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_todays_contacts_lead_elsewhere(seed):
    assert errors(antmaze.AntMaze("large", **PLAIN), f"ant{seed}", steps=10).max() > 1e-4


def test_what_the_settings_change(maze):
    """Contacts: margins and three switches. Capsules: masses and inertias of the legs."""
    plain = antmaze.AntMaze(maze, **PLAIN).model
    contacts = antmaze.AntMaze(maze, legacy_capsules=False).model
    capsules = antmaze.AntMaze(maze, legacy_contacts=False).model
    assert differing(contacts, plain) == {"geom_margin", "body_margin", "opt.disableflags"}
    assert (plain.geom_margin == 0.01).all() and (contacts.geom_margin == 0.005).all()
    assert contacts.opt.disableflags == plain.opt.disableflags | int(old_engine.LATER)
    changed = differing(capsules, plain)
    assert {"body_mass", "body_inertia"} < changed
    derived = {"body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"}
    derived |= {"body_ipos", "body_iquat", "body_sameframe", "geom_sameframe", "light_poscom0"}
    assert changed <= {"body_mass", "body_inertia"} | derived
    # The engine's own choice of axes differs, and a last digit of the centres; not the bodies.
    np.testing.assert_allclose(capsules.body_ipos, plain.body_ipos, atol=1e-12)
    both = antmaze.AntMaze(maze).model
    assert differing(both, contacts) == changed
    for key in changed:
        np.testing.assert_array_equal(getattr(both, key), getattr(capsules, key))


def capsules_of(model) -> dict[int, int]:
    """Body -> its capsule; no body has two."""
    geoms = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE)
    owners = model.geom_bodyid[geoms]
    assert len(set(owners)) == len(owners) == 12
    return dict(zip(owners, geoms))


# kg: the torso, a sphere, and of each leg aux, leg and ankle. The old ones are what gym with
# mujoco-py showed as model.body_mass of its ant, as others quote it.
OLD_MASSES = [0.32724923] + 4 * [0.03647693, 0.03647693, 0.06491138]
EXACT = [5 * np.pi * 0.08**2 * (h + 4 / 3 * 0.08) for h in (0.2 * 2**0.5, 0.4 * 2**0.5)]
NEW_MASSES = [5 * 4 / 3 * np.pi * 0.25**3] + 4 * [EXACT[0], EXACT[0], EXACT[1]]


def test_old_capsules(maze):
    """Cylinders of their radius r and their middle part's length plus r."""
    model = antmaze.AntMaze(maze).model
    np.testing.assert_allclose(model.body_mass[1:], OLD_MASSES, atol=5e-9)
    for body, geom in capsules_of(model).items():
        r, h = model.geom_size[geom, 0], 2 * model.geom_size[geom, 1] + model.geom_size[geom, 0]
        mass = model.body_mass[body]
        assert mass == pytest.approx(5 * np.pi * r**2 * h, rel=1e-12)
        across, along = mass * (3 * r**2 + h**2) / 12, mass * r**2 / 2
        inertia = np.diag(model.body_inertia[body])
        axes, limb = np.empty(9), np.empty(9)
        mujoco.mju_quat2Mat(axes, model.body_iquat[body])
        mujoco.mju_quat2Mat(limb, model.geom_quat[geom])
        axes, limb = axes.reshape(3, 3), limb.reshape(3, 3)
        wanted = limb @ np.diag([across, across, along]) @ limb.T
        np.testing.assert_allclose(axes @ inertia @ axes.T, wanted, atol=1e-12)
        np.testing.assert_allclose(model.body_ipos[body], model.geom_pos[geom], atol=1e-12)


def test_todays_capsules_where_asked_for(maze):
    model = antmaze.AntMaze(maze, legacy_capsules=False).model
    np.testing.assert_allclose(model.body_mass[1:], NEW_MASSES, rtol=1e-12)


def test_walls(env, maze):
    """A box of 4 x 4 x 2 m on the floor for each wall cell, the start's centre being the origin."""
    model, data = env.model, env.data
    [floor] = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
    walls = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    assert len(walls) == WALLS[maze] and not model.geom_bodyid[walls].any()
    assert (model.geom_size[walls] == [2, 2, 1]).all() and (data.geom_xpos[walls, 2] == 1).all()
    assert (data.geom_xmat[walls] == np.eye(3).ravel()).all()
    rows, columns = np.nonzero(np.array([list(row) for row in env.maze]) == "1")
    wanted = np.stack([4 * columns - 4, 4 * rows - 4], 1)
    np.testing.assert_array_equal(data.geom_xpos[walls, :2], wanted)
    assert env.maze[1][1] == "R" and len(env.cells("R")) == len(env.cells("G")) == 1
    np.testing.assert_array_equal(env.cells("R")[0], [0, 0])
    np.testing.assert_array_equal(env.cells("G")[0], GOAL[maze])
    # The ant collides with floor and walls and never with itself.
    solid = np.isin(np.arange(model.ngeom), [floor, *walls])
    assert (model.geom_contype == 1).all()
    np.testing.assert_array_equal(model.geom_conaffinity, solid)
    assert (model.geom_condim == 3).all() and (model.geom_friction[walls] == [1, 0.5, 0.5]).all()
    assert (model.geom_solref[walls] == [0.02, 1]).all()
    assert (model.geom_solimp[walls, :3] == [0.8, 0.8, 0.01]).all()


@pytest.mark.parametrize("direction", [(-1, 0), (0, -1)])
@pytest.mark.parametrize("contacts, distance", [(True, 0.01), (False, 0.02)])
def test_a_wall_stops_the_ant(maze, direction, contacts, distance):
    """Pushed by 5 N, some half of its weight, its torso of radius 0.25 m comes to rest before the
    face, which is 2 m away: within the margin, that is the old one or today's, and not at its end.
    """
    env = antmaze.AntMaze(maze, legacy_contacts=contacts)
    env.reset(seed=0)
    env.data.xfrc_applied[env.model.body("torso").id, :2] = 5 * np.array(direction)
    places = []
    for _ in range(60):
        env.step(still(env))
        places.append(env.data.qpos[:2] @ direction)
    assert max(places) < 1.8 and distance - 0.01 < 1.75 - places[-1] < distance
    at = 4 * np.array(direction)
    [wall] = np.flatnonzero((env.data.geom_xpos == [*at, 1]).all(1))
    assert {wall, env.model.geom("torso_geom").id} in [set(pair) for pair in env.data.contact.geom]
    assert not env.data.warning.number.any()


# --- Actions and observations ---------------------------------------------------------------------


def test_every_number_of_the_observation(large):
    """And the clock: five simulator steps of 0.02 s."""
    env, rng = large, np.random.default_rng(0)
    assert env.observation_space.shape == (29,) and env.model.opt.timestep == 0.02
    assert env.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4 and env.dt == 0.1
    start = env.data.time
    for k in range(20):
        obs, *_ = env.step(rng.uniform(-1, 1, 8))
        assert obs.shape == (29,) and obs.dtype == np.float64
        assert env.data.time - start == pytest.approx(0.1 * (k + 1))
        qpos, qvel = env.data.joint("root").qpos, env.data.joint("root").qvel
        np.testing.assert_array_equal(obs[:7], qpos)  # x, y, z and w, x, y, z
        np.testing.assert_array_equal(obs[15:21], qvel)
        for place, name in enumerate(LEGS):
            joint = env.data.joint(name)
            assert (obs[7 + place], obs[21 + place]) == (joint.qpos[0], joint.qvel[0])
    assert env.data.body("torso").xpos[2] == pytest.approx(obs[2], abs=0.1)


def test_what_an_action_drives(large):
    """30 times it in the place of its joint, and no further than 30."""
    env = large
    assert env.action_space == gym.spaces.Box(-1, 1, (8,), np.float32)
    for place, name in enumerate(DRIVEN):
        assert env.model.joint(env.model.actuator_trnid[place, 0]).name == name
        for value, torque in ((0.25, 7.5), (-1, -30), (1, 30), (1.5, 30), (-7, -30)):
            action = still(env)
            action[place] = value
            env.step(action)
            kept = still(env)
            kept[place] = value
            np.testing.assert_array_equal(action, kept)
            np.testing.assert_array_equal(env.data.ctrl, 30 * kept.clip(-1, 1))
            applied = np.zeros(14)
            applied[env.model.joint(name).dofadr] = torque
            np.testing.assert_allclose(env.data.qfrc_actuator, applied, rtol=1e-12)


# --- Reward and end -------------------------------------------------------------------------------

INSIDE, OUTSIDE = 0.5, np.nextafter(0.5, 1)
EDGES = [(INSIDE, 0, True), (0, -INSIDE, True), (OUTSIDE, 0, False), (0, -OUTSIDE, False)]
EDGES += [(0.3, 0.3999, True), (0.3, 0.4001, False), (-0.4, -0.4, False)]


@pytest.mark.parametrize("x, y, success", EDGES)
def test_success_within_half_a_metre(large, x, y, success, monkeypatch):
    """At both sides of the edge, the edge itself inside; height makes no difference."""
    env = large
    freeze(env, monkeypatch)
    env.goal = np.zeros(2)
    for z in (0.75, 5.0):
        qpos = env.init_qpos.copy()
        qpos[:3] = x, y, z
        env.set_state(qpos, env.init_qvel)
        _, reward, terminated, truncated, info = env.step(still(env))
        assert (reward, terminated, truncated) == (float(success), success, False)
        assert info["success"] is success and type(reward) is float and type(terminated) is bool


def test_success_ends_an_episode(maze):
    """Through gym.make, with steps that move; and not before it. The goal is where info says."""
    env = gym.make(f"benchmarks.envs:antmaze-{DATA[maze][1]}-v2")
    _, info = env.reset(seed=0)
    goal, qpos = info["goal"], env.unwrapped.data.qpos.copy()
    for place, wanted in ((goal + [1, 0], False), (goal, True)):
        qpos[:2] = place
        env.unwrapped.set_state(qpos, np.zeros(14))
        _, reward, terminated, truncated, info = env.step(still(env))
        assert (reward, terminated, truncated) == (float(wanted), wanted, False)
        assert info.keys() == {"success", "goal"} and info["success"] is wanted
        np.testing.assert_array_equal(info["goal"], goal)
        info["goal"] += 5  # a copy
        np.testing.assert_array_equal(env.unwrapped.goal, goal)


def test_lying_on_its_back_does_not_end_it(large):
    qpos = large.init_qpos.copy()
    qpos[2:7] = 0.5, 0, 1, 0, 0
    large.set_state(qpos, large.init_qvel)
    for _ in range(30):
        _, reward, terminated, truncated, info = large.step(still(large))
        assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    assert large.data.body("torso").xmat[8] < -0.9, "it still lies there"


def test_the_time_limit_truncates(maze, monkeypatch):
    env = gym.make(f"benchmarks.envs:antmaze-{DATA[maze][0]}-v2")
    env.reset(seed=0)
    freeze(env, monkeypatch)
    for step in range(1, LIMIT[maze] + 1):
        _, reward, terminated, truncated, _ = env.step(still(env))
        assert (reward, terminated) == (0.0, False) and truncated == (step == LIMIT[maze])


# --- Resets ---------------------------------------------------------------------------------------


def test_what_a_reset_draws(env, maze):
    """A start of 15 uniform positions, of which the quaternion is normalised, and 14 normal
    velocities; a goal within 1.5 m of its cell's centre, upwards only: a sum of two draws."""
    rest = np.array([0, 0, 0.75, 1, 0, 0, 0, *np.zeros(8)])
    np.testing.assert_array_equal(env.init_qpos, rest)
    states, goals = [], []
    for _ in range(600):
        env.step(env.action_space.sample())
        obs, info = env.reset()
        np.testing.assert_array_equal(obs, np.concatenate([env.data.qpos, env.data.qvel]))
        np.testing.assert_array_equal(info["goal"], env.goal)
        assert env.data.time == 0
        states.append(obs)
        goals.append(env.goal - GOAL[maze])
    states, goals = np.array(states), np.array(goals)
    np.testing.assert_allclose(np.linalg.norm(states[:, 3:7], axis=1), 1, rtol=1e-12)
    plain = [0, 1, 2, *range(7, 15)]
    physics.check_uniform(states[:, plain] - rest[plain], [-0.1] * 11, [0.1] * 11)
    turns = states[:, 4:7] / states[:, 3:4]  # a uniform number over one around 1
    assert np.abs(turns).max() <= 0.1 / 0.9
    physics.check_quartiles(turns, [-0.05, 0, 0.05])
    physics.check_normal(states[:, 15:], 0.1)
    assert goals.min() >= 0 and goals.max() <= 1.5
    assert goals.min() < 0.15 and goals.max() > 1.35
    physics.check_quartiles(goals, [0.5, 0.75, 1.0])
    assert np.abs(np.corrcoef(goals.T, states[:, :2].T) - np.eye(4)).max() < 0.2


def test_a_seed_decides_everything(env, maze):
    first, goal = course(env, 3), env.goal
    for other in (env, antmaze.AntMaze(maze)):
        np.testing.assert_array_equal(first, course(other, 3))
        np.testing.assert_array_equal(goal, other.goal)
    assert (first[0] != course(env, 4)[0]).all() and (env.goal != goal).all()
    env.reset(seed=3)
    obs, info = env.reset()
    assert (obs != first[0]).all() and (info["goal"] != goal).all(), "nor is the next one the same"


# --- gymnasium ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*infinity.*")  # of the observation's bounds
def test_gymnasium_likes_it(env):
    check_env(env, skip_render_check=True)


def test_settings_reach_it(maze):
    """Through gym.make, and when it is made again from a copy."""
    for settings in ((False, True), (True, False), (False, False)):
        kwargs = dict(zip(("legacy_contacts", "legacy_capsules"), settings))
        env = gym.make(f"benchmarks.envs:antmaze-{DATA[maze][0]}-v2", **kwargs)
        for made in (env, pickle.loads(pickle.dumps(env.unwrapped)), gym.make(env.spec)):
            made, model = made.unwrapped, antmaze.AntMaze(maze, **kwargs).model
            assert (made.legacy_contacts, made.legacy_capsules) == settings
            assert not differing(made.model, model)
    env = gym.make(f"benchmarks.envs:antmaze-{DATA[maze][0]}-v2").unwrapped
    assert (env.legacy_contacts, env.legacy_capsules) == (True, True)


def test_a_picture_may_be_larger_than_the_buffer_for_it():
    model = antmaze.AntMaze("umaze", width=1200, height=900).model
    assert (model.vis.global_.offwidth, model.vis.global_.offheight) == (1200, 900)
