"""The hands' tasks: D4RL's models, moved as by the old engine, their rewards, ends and resets."""

import copy
import os
import pickle
import re
import shutil
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import physics
import pytest
from gymnasium.utils.env_checker import check_env
from physics import OLD, arrays, course, differing, still

from benchmarks.envs import adroit, old_engine

TASKS = {"pen": adroit.Pen, "door": adroit.Door, "relocate": adroit.Relocate}


@pytest.fixture(params=TASKS)
def name(request) -> str:
    return request.param


@pytest.fixture
def env(name):
    return TASKS[name]()


def errors(env, name) -> np.ndarray:
    """Of qpos after each step of the old engine's trajectory."""
    return physics.errors(env, name, prepare)


def prepare(env, name) -> None:
    """What the reset of the old engine's trajectory had drawn."""
    if name == "pen":
        env.model.body("target").quat = OLD["pen/target_quat"]
    elif name == "door":
        env.model.body("frame").pos = OLD["door/frame_pos"]
    else:
        env.model.body("Object").pos = OLD["relocate/object_pos"]
        env.model.site("target").pos = OLD["relocate/target_pos"]


# --- The model ------------------------------------------------------------------------------------


def test_follows_the_old_engine(env, name):
    assert errors(env, name).max() < 1e-5


def test_todays_contacts_lead_elsewhere(name):
    assert errors(TASKS[name](legacy_contacts=False), name).max() > 1e-4


def test_what_the_settings_change(name):
    """Contacts: margins, three switches and pairs of boxes, nothing else. Capsules: nothing."""
    plain = TASKS[name](legacy_contacts=False, legacy_capsules=False).model
    contacts = TASKS[name](legacy_capsules=False).model
    changed = differing(contacts, plain, ignored=(*physics.NAMES, "npair", "pair"))
    assert changed == {"geom_margin", "body_margin", "opt.disableflags"}
    assert (plain.geom_margin == 0.0005).all() and (contacts.geom_margin == 0.00025).all()
    assert contacts.opt.disableflags == plain.opt.disableflags | int(old_engine.LATER)
    old = np.isin(contacts.pair_signature, plain.pair_signature)
    for key in ("margin", "gap", "dim", "friction", "solref", "solimp"):
        kept = getattr(contacts, f"pair_{key}")[old]
        np.testing.assert_array_equal(kept, getattr(plain, f"pair_{key}"))
    added = np.stack([contacts.pair_geom1, contacts.pair_geom2])[:, ~old]
    assert (contacts.geom_type[added] == mujoco.mjtGeom.mjGEOM_BOX).all()

    for flag in (False, True):
        with_capsules = TASKS[name](legacy_contacts=flag, legacy_capsules=True).model
        assert not differing(with_capsules, contacts if flag else plain, ignored=())
    # Why: no body with a capsule leaves its inertia to the compiler.
    spec = TASKS[name]().specification()
    kinds, owners = plain.geom_type, plain.geom_bodyid
    bodies = np.unique(owners[kinds == mujoco.mjtGeom.mjGEOM_CAPSULE])
    assert len(bodies) >= 17 and all(spec.bodies[body].explicitinertial for body in bodies)


@pytest.fixture
def their_file(name, tmp_path):
    """D4RL's own file, without an attribute that today's parser refuses."""
    source = physics.d4rl(f"hand_manipulation_suite/assets/DAPG_{name}.xml")
    (tmp_path / "Adroit").symlink_to(source.parent.parent / "Adroit")
    (tmp_path / "assets").mkdir()
    for file in source.parent.glob("*.xml"):
        shutil.copy(file, tmp_path / "assets")
    file = tmp_path / "assets" / "DAPG_assets.xml"
    text, count = re.subn(r'apirate="\d+"', "", file.read_text())
    assert count == 1
    file.write_text(text)
    return str(tmp_path / "assets" / source.name)


def test_the_model_is_d4rls(name, their_file):
    """Every number."""
    model = mujoco.MjModel.from_xml_path(their_file)
    for first, last, gain in (("A_WRJ1", "A_WRJ0", 10), ("A_FFJ3", "A_THJ0", 1)):
        rows = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[rows, :3] = gain, 0, 0
        model.actuator_biasprm[rows, :3] = 0, -gain, 0
    ours, theirs = arrays(TASKS[name](legacy_contacts=False).model), arrays(model)
    groups = ("body", "jnt", "dof", "geom", "site", "actuator", "tendon", "wrap", "eq", "sensor")
    groups += ("mesh_vert", "mesh_pos", "mesh_quat", "qpos", "opt.", "exclude", "pair", "key", "n")
    # Sizes and addresses, of names and pictures too, are among what is the same.
    compared = [key for key in theirs if key.startswith(groups) and "nbuffer" not in key]
    assert len(compared) > 250 and {"body_mass", "geom_size", "opt.timestep"} < set(compared)
    for key in compared:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


# --- D4RL's own classes ---------------------------------------------------------------------------


class Named:
    """Today's model or data under mujoco-py's names."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, key):
        if key.endswith("_name2id"):
            kind = getattr(mujoco.mjtObj, f"mjOBJ_{key.removesuffix('_name2id').upper()}")
            return lambda name: mujoco.mj_name2id(self.real, kind, name)
        return getattr(self.real, {"body_xpos": "xpos"}.get(key, key))


@pytest.fixture
def theirs(name, their_file):
    """D4RL's environment of the hand, with dense rewards, on today's engine."""

    class Simulation(physics.simulation(lambda _: mujoco.MjModel.from_xml_path(their_file))):
        def __init__(self, *words):
            super().__init__(*words)
            real = self.model, self.data
            mujoco.mj_forward(*real)  # mjrl's makes a step, for its observation
            self.sim.forward = lambda: mujoco.mj_forward(*real)
            self.sim.reset = lambda: mujoco.mj_resetData(*real)
            self.model = self.sim.model = Named(self.model)
            self.data = self.sim.data = Named(self.data)

        def do_simulation(self, ctrl, n_frames):
            self.data.ctrl[:] = ctrl
            mujoco.mj_step(self.model.real, self.data.real, n_frames)

    class Pickled(physics.Ignorant):
        pass

    code = physics.d4rl_module(
        f"hand_manipulation_suite/{name}_v0.py",
        os=os,
        spaces=gym.spaces,
        mujoco_env=SimpleNamespace(MujocoEnv=Simulation),
        offline_env=SimpleNamespace(OfflineEnv=physics.Ignorant),
        utils=SimpleNamespace(EzPickle=Pickled),
        euler2quat=physics.d4rl_module("utils/quatmath.py").euler2quat,
    )
    return getattr(code, f"{name.title()}EnvV0")()


DRAWN = ("body_pos", "body_quat", "site_pos")  # fields of the model that a reset changes


def test_steps_beside_d4rls(name, theirs):
    """The same actions, some beyond the bounds, from starts on both sides of every threshold of
    success: observations and success; the reward is the success's."""
    env, rng, found = TASKS[name](legacy_contacts=False), np.random.default_rng(0), []
    places = [(place, numbers) for task, place, numbers, _ in EDGES if task is TASKS[name]]
    for place, numbers in [*places, *places]:
        env.reset(seed=len(found))
        place(env, *numbers)
        for field in DRAWN:
            getattr(theirs.model, field)[:] = getattr(env.model, field)
        theirs.sim.reset()
        theirs.set_state(env.data.qpos, env.data.qvel)
        env.data.qacc_warmstart[:] = theirs.data.qacc_warmstart
        for step in range(5):
            action = rng.uniform(-1.2, 1.2, env.action_space.shape) * (step > 0)
            obs, reward, terminated, truncated, info = env.step(action)
            their_obs, _, done, their_info = theirs.step(action)
            np.testing.assert_allclose(obs, their_obs, atol=1e-10)
            assert info["success"] == terminated == their_info["goal_achieved"] == (reward == 0)
            assert reward in (0, -1) and not truncated
            found.append(terminated)
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_resets_beside_d4rls(name, theirs, share):
    """The same draws, of numbers one after the other."""
    env = TASKS[name](legacy_contacts=False)
    env.np_random = theirs.np_random = physics.Scripted({None: share})
    obs, _ = env.reset()
    np.testing.assert_allclose(obs, theirs.reset(), atol=1e-12)
    if name != "door":  # D4RL's moves the world, too, before it knows which body the frame is
        for field in DRAWN:
            ours = getattr(env.model, field)
            np.testing.assert_allclose(ours, getattr(theirs.model, field), atol=1e-15)


# --- Actions and observations ---------------------------------------------------------------------


def positions(env, qpos) -> mujoco.MjData:
    """Where bodies and sites are when the joints are at qpos."""
    data = mujoco.MjData(env.model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(env.model, data)
    return data


def expected(env, name, at: mujoco.MjData) -> np.ndarray:
    """The observation by tasks and names: joints of now, positions of `at`."""
    qpos, qvel = env.data.qpos, env.data.qvel
    palm = at.site("S_grasp").xpos
    if name == "pen":
        pen, goal = at.body("Object").xpos, at.site("eps_ball").xpos
        axis = at.site("object_top").xpos - at.site("object_bottom").xpos
        target = at.site("target_top").xpos - at.site("target_bottom").xpos
        axis, target = axis / np.linalg.norm(axis), target / np.linalg.norm(target)
        parts = [qpos[:24], pen, qvel[24:30], axis, target, pen - goal, axis - target]
    elif name == "door":
        joints = [mujoco.mj_id2name(env.model, mujoco.mjtObj.mjOBJ_JOINT, k) for k in range(30)]
        assert joints[0] == "ARTz" and joints[28:] == ["door_hinge", "latch"]
        handle, flag = at.site("S_handle").xpos, 1.0 if qpos[28] > 1 else -1.0
        parts = [qpos[1:28], [qpos[29]], [qpos[28]], palm, handle, palm - handle, [flag]]
    else:
        ball, goal = at.body("Object").xpos, at.site("target").xpos
        parts = [qpos[:30], palm - ball, palm - goal, ball - goal]
    return np.concatenate(parts)


def test_every_number_of_the_observation(env, name):
    """And what an action does: five simulator steps with the servos in its place of their range.

    Positions are those at the beginning of the last simulator step.
    """
    obs, _ = env.reset(seed=1)
    size = {"pen": 45, "door": 39, "relocate": 39}[name]
    assert obs.shape == env.observation_space.shape == (size,) and obs.dtype == np.float64
    np.testing.assert_allclose(obs, expected(env, name, positions(env, env.data.qpos)), atol=1e-12)
    low, high = env.model.actuator_ctrlrange.T
    rng, moved = np.random.default_rng(0), []
    for k in range(20):
        action = rng.uniform(-1, 1, env.action_space.shape)
        twin = copy.copy(env.data)
        twin.ctrl[:] = (low + high) / 2 + action * (high - low) / 2
        for _ in range(4):
            mujoco.mj_step(env.model, twin)
        stale = positions(env, twin.qpos)
        mujoco.mj_step(env.model, twin)
        obs, *_ = env.step(action)
        np.testing.assert_array_equal(env.data.qpos, twin.qpos)
        np.testing.assert_array_equal(env.data.qvel, twin.qvel)
        np.testing.assert_allclose(obs, expected(env, name, stale), atol=1e-12)
        moved.append(np.abs(obs - expected(env, name, positions(env, twin.qpos))).max())
        assert env.data.time == pytest.approx((k + 1) * 0.01)
    assert np.median(moved) > 1e-6, "else it would make no difference which positions are shown"


def test_the_door_counts_as_open_above_1_rad():
    env = adroit.Door()
    env.reset(seed=0)
    for angle, flag in ((1.0, -1.0), (np.nextafter(1.0, 2), 1.0)):
        qpos = env.init_qpos.copy()
        qpos[28] = angle
        env.set_state(qpos, env.init_qvel)
        obs = env._get_obs()
        assert obs[28] == angle and obs[38] == flag


def test_actions_are_clipped(env, name):
    low, high = env.model.actuator_ctrlrange.T
    shape = {"pen": (24,), "door": (28,), "relocate": (30,)}[name]
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, shape, np.float32)
    for value, wanted in ((0, (low + high) / 2), (1, high), (-1, low), (3, high), (-3, low)):
        env.reset(seed=0)
        env.step(still(env) + value)
        np.testing.assert_allclose(env.data.ctrl, wanted, rtol=1e-12, atol=1e-12)


# --- Success --------------------------------------------------------------------------------------


def place_pen(env, distance, cosine):
    """The target beside the pen, so far from it and turned so far."""
    env.model.site("eps_ball").pos = env.data.body("Object").xpos + [0, 0, distance]
    turn = np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0, 1]), np.arccos(cosine))  # the pen lies on x
    quat = np.empty(4)
    mujoco.mju_mulQuat(quat, turn, env.data.body("Object").xquat)
    env.model.body("target").quat = quat
    env.set_state(env.init_qpos, env.init_qvel)


def place_door(env, angle):
    qpos = env.init_qpos.copy()
    qpos[28] = angle
    env.set_state(qpos, env.init_qvel)


def place_ball(env, distance):
    env.model.site("target").pos = env.data.body("Object").xpos + [0, distance, 0]
    env.set_state(env.init_qpos, env.init_qvel)


EDGES = [
    (adroit.Pen, place_pen, (0.0749, 0.99), True),
    (adroit.Pen, place_pen, (0.0751, 0.99), False),
    (adroit.Pen, place_pen, (0.01, 0.9501), True),
    (adroit.Pen, place_pen, (0.01, 0.9499), False),
    (adroit.Pen, place_pen, (0.0749, 0.9501), True),
    (adroit.Pen, place_pen, (0.0751, 0.9499), False),
    (adroit.Door, place_door, (1.35,), True),
    (adroit.Door, place_door, (np.nextafter(1.35, 0),), False),
    (adroit.Relocate, place_ball, (0.0999,), True),
    (adroit.Relocate, place_ball, (0.1001,), False),
]


@pytest.mark.parametrize("task, place, numbers, success", EDGES)
def test_success(task, place, numbers, success, monkeypatch):
    """At both sides of its edge, with a step in which nothing moves."""
    env = task()
    env.reset(seed=0)
    place(env, *numbers)
    monkeypatch.setattr(env, "do_simulation", lambda ctrl, n_frames: None)
    _, reward, terminated, truncated, info = env.step(still(env))
    assert (reward, terminated, truncated) == (0.0 if success else -1.0, success, False)
    assert info == {"success": success}
    assert type(reward) is float and type(terminated) is type(info["success"]) is bool


CLEAR = {
    "pen": (place_pen, (0.0, 1.0), (0.2, 0.0)),
    "door": (place_door, (1.5,), (0.0,)),
    "relocate": (place_ball, (0.0,), (0.3,)),
}


def test_success_ends_an_episode(name):
    """Through gym.make, with steps that move; and not before it."""
    env = gym.make(f"benchmarks.envs:{name}-binary-v0")
    place, there, elsewhere = CLEAR[name]
    _, info = env.reset(seed=0)
    for numbers, wanted in ((elsewhere, (-1.0, False, False)), (there, (0.0, True, False))):
        place(env.unwrapped, *numbers)
        _, reward, terminated, truncated, info = env.step(still(env))
        assert (reward, terminated, truncated) == wanted and info["success"] == wanted[1]


NEAR = {  # places around what counts: distance and cosine, angle, distance
    "pen": lambda rng: (rng.uniform(0.05, 0.09), rng.uniform(0.92, 1)),
    "door": lambda rng: (rng.uniform(1.33, 1.37),),
    "relocate": lambda rng: (rng.uniform(0.08, 0.12),),
}


def test_an_observation_tells_the_success(env, name):
    """By which demonstrations without rewards are judged: as the step that returned it."""
    place, rng = CLEAR[name][0], np.random.default_rng(0)
    env.reset(seed=0)
    observations, successes = [], []
    for _ in range(200):
        place(env, *NEAR[name](rng))
        obs, *_, info = env.step(env.action_space.sample())
        observations.append(obs)
        successes.append(info["success"])
    assert 20 < sum(successes) < 180, "both are frequent"
    assert TASKS[name].achieved(np.array(observations)).tolist() == successes


def test_the_time_limit_truncates(name):
    env = gym.make(f"benchmarks.envs:{name}-binary-v0")
    env.reset(seed=0)
    limit = {"pen": 100, "door": 200, "relocate": 200}[name]
    if name == "pen":
        place_pen(env.unwrapped, 0.2, 0.0)  # else it would lie by chance as it should
    for step in range(1, limit + 1):
        _, reward, terminated, truncated, info = env.step(still(env))
        assert (reward, terminated, info["success"]) == (-1.0, False, False)
        assert truncated == (step == limit)


# --- Resets ---------------------------------------------------------------------------------------


def drawn(env, name) -> np.ndarray:
    """What a reset has drawn, told by the model."""
    if name == "pen":
        w, x, y, z = env.model.body("target").quat
        about_x, about_y = 2 * np.arctan2(x, w), 2 * np.arctan2(y, w)
        # First about x, then about the y that has turned with it; no third turn.
        a, b = about_x / 2, about_y / 2
        turns = [np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.cos(a) * np.sin(b)]
        np.testing.assert_allclose([w, x, y, z], [*turns, np.sin(a) * np.sin(b)], atol=1e-12)
        return np.array([about_x, about_y])
    if name == "door":
        return env.model.body("frame").pos.copy()
    return np.concatenate([env.model.body("Object").pos[:2], env.model.site("target").pos])


BOUNDS = {
    "pen": ([-1, -1], [1, 1]),
    "door": ([-0.3, 0.25, 0.252], [-0.2, 0.35, 0.35]),
    "relocate": ([-0.15, -0.15, -0.2, -0.2, 0.15], [0.15, 0.3, 0.2, 0.2, 0.35]),
}


def test_what_a_reset_draws(env, name):
    """Uniform and independent within the bounds; everything else is always the same."""
    low, high = map(np.array, BOUNDS[name])
    env.reset(seed=0)
    height = env.model.body("Object").pos[2] if name == "relocate" else None
    samples = []
    for _ in range(400):
        env.step(env.action_space.sample())
        env.reset()
        assert not env.data.qpos.any() and not env.data.qvel.any() and env.data.time == 0
        if name == "relocate":
            assert env.model.body("Object").pos[2] == height == 0.035
        samples.append(drawn(env, name))
    physics.check_uniform(samples, low, high)


def test_a_seed_decides_everything(env, name):
    first = course(env, 3)
    np.testing.assert_array_equal(first, course(env, 3))
    np.testing.assert_array_equal(first, course(TASKS[name](), 3))
    assert (first[0] != course(env, 4)[0]).any()
    env.reset(seed=3)
    assert (env.reset()[0] != first[0]).any(), "an episode after it begins elsewhere"


# --- gymnasium ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*infinity.*")  # of the observation's bounds
def test_gymnasium_likes_it(env):
    check_env(env, skip_render_check=True)


def test_settings_reach_it(name):
    """Through gym.make, and when it is made again from a copy."""
    env = gym.make(f"benchmarks.envs:{name}-binary-v0", legacy_contacts=False)
    for made in (env.unwrapped, pickle.loads(pickle.dumps(env.unwrapped)), gym.make(env.spec)):
        made = made.unwrapped
        assert type(made) is TASKS[name]
        assert (made.legacy_contacts, made.legacy_capsules) == (False, True)
        assert (made.model.geom_margin == 0.0005).all()
    assert (gym.make(f"benchmarks.envs:{name}-binary-v0").unwrapped.legacy_contacts) is True
