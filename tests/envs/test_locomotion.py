"""Hopper, half-cheetah and walker: gym's models, moved as by the old engine, and D4RL's rewards."""

import pickle

import gymnasium as gym
import mujoco
import numpy as np
import physics
import pytest
from gymnasium.utils.env_checker import check_env
from physics import course, errors, still

from benchmarks.envs import locomotion

TASKS = {
    "hopper": locomotion.Hopper,
    "halfcheetah": locomotion.HalfCheetah,
    "walker2d": locomotion.Walker2d,
}
DT = {"hopper": 0.008, "halfcheetah": 0.05, "walker2d": 0.008}  # seconds of a step
COST = {"hopper": 1e-3, "halfcheetah": 0.1, "walker2d": 1e-3}
BONUS = {"hopper": 1.0, "halfcheetah": 0.0, "walker2d": 1.0}
# Steps. The cheetah is chaotic: moved by 1e-14 at the start it is, on the old engine too, by 1e-6
# elsewhere after 70 steps and by 1e-4 after 100.
FOLLOWED = {"hopper": 100, "halfcheetah": 60, "walker2d": 100}


@pytest.fixture(params=TASKS)
def name(request) -> str:
    return request.param


@pytest.fixture
def env(name):
    env = TASKS[name]()
    env.reset(seed=0)
    return env


@pytest.fixture
def frozen(env, monkeypatch):
    """An environment in whose steps nothing moves."""
    monkeypatch.setattr(env, "do_simulation", lambda ctrl, n_frames: None)
    return env


# --- The model ------------------------------------------------------------------------------------


def test_follows_the_old_engine(name):
    """Which had today's capsules; those of before were never run with bindings for Python."""
    env = TASKS[name](legacy_capsules=False)
    assert errors(env, name)[: FOLLOWED[name]].max() < 1e-5


def test_todays_contacts_lead_the_hopper_elsewhere():
    """It alone has margins; cheetah and walker follow with today's contacts too."""
    for name, task in TASKS.items():
        largest = errors(task(legacy_contacts=False, legacy_capsules=False), name)[:60].max()
        assert largest > 1e-4 if name == "hopper" else largest < 1e-5


# kg. Hopper and cheetah: what gym with mujoco-py showed as model.body_mass, as others quote it. The
# walker has the hopper's torso, thigh and leg; its foot is worked out.
TORSO, THIGH, SHANK = 3.53429174, 3.92699082, 2.71433605
FOOT = 1000 * np.pi * 0.06**2 * (0.2 + 0.06)
CHEETAH = [6.36031332, 1.53524804, 1.58093995, 1.0691906, 1.42558747, 1.17885117, 0.84986945]
MASSES = {
    "hopper": [TORSO, THIGH, SHANK, 5.08938010],
    "halfcheetah": CHEETAH,
    "walker2d": [TORSO, THIGH, SHANK, FOOT, THIGH, SHANK, FOOT],
}


def test_old_capsules(env, name):
    """Masses, and the inertia of each body that is one capsule: a cylinder's of its radius r and
    its middle part's length plus r."""
    model = env.model
    np.testing.assert_allclose(model.body_mass[1:], MASSES[name], atol=5e-9)
    tested = 0
    for body in range(1, model.nbody):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        if len(geoms) > 1:
            continue
        r, h = model.geom_size[geoms[0], 0], 2 * model.geom_size[geoms[0], 1]
        mass = model.body_mass[body]
        across, along = mass * (3 * r**2 + (h + r) ** 2) / 12, mass * r**2 / 2
        np.testing.assert_allclose(
            sorted(model.body_inertia[body]), sorted([across, across, along]), rtol=1e-9
        )
        tested += 1
    assert tested == {"hopper": 4, "halfcheetah": 6, "walker2d": 7}[name]


@pytest.mark.parametrize("capsules", [False, True])
def test_the_cheetah_weighs_14_kg(capsules):
    model = locomotion.HalfCheetah(legacy_capsules=capsules).model
    assert model.body_mass.sum() == pytest.approx(14, rel=1e-12)


def test_todays_capsules_where_asked_for():
    """Exact ones: pi r^2 (l + 4/3 r) times 1000 kg/m^3."""
    wanted = [1000 * np.pi * r**2 * (h + 4 / 3 * r) for r, h in ((0.05, 0.4), (0.06, 0.39))]
    model = locomotion.Hopper(legacy_capsules=False).model
    np.testing.assert_allclose(model.body_mass[[1, 4]], wanted, rtol=1e-12)


LEG = {  # a capsule's ends (x, z), radius, friction; its body's joint (x, z) and range in degrees
    "torso": ((0, 1.45), (0, 1.05), 0.05, 0.9, None, None),
    "thigh": ((0, 1.05), (0, 0.6), 0.05, 0.9, (0, 1.05), (-150, 0)),
    "leg": ((0, 0.6), (0, 0.1), 0.04, 0.9, (0, 0.6), (-150, 0)),
}
HOPPER_FOOT = ((-0.13, 0.1), (0.26, 0.1), 0.06, 2.0, (0, 0.1), (-45, 45))
FEET = {
    side: ((0, 0.1), (0.2, 0.1), 0.06, friction, (0, 0.1), (-45, 45))
    for side, friction in (("foot", 0.9), ("foot_left", 1.9))
}
GYM = {
    "hopper": LEG | {"foot": HOPPER_FOOT},
    "walker2d": LEG | {"thigh_left": LEG["thigh"], "leg_left": LEG["leg"]} | FEET,
}


@pytest.mark.parametrize("name", GYM)
def test_bodies_are_gyms(name):
    """Numbers of gym's files, which are in coordinates of the world; gymnasium's are not."""
    model = TASKS[name]().model
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    assert model.nbody == len(GYM[name]) + 1
    for body, (*ends, radius, friction, anchor, degrees) in GYM[name].items():
        geom, place = model.geom(f"{body}_geom"), data.geom(f"{body}_geom")
        half = place.xmat.reshape(3, 3)[:, 2] * geom.size[1]
        found = sorted([tuple(place.xpos - half), tuple(place.xpos + half)])
        np.testing.assert_allclose(found, sorted((x, 0, z) for x, z in ends), atol=1e-9)
        assert (geom.size[0], geom.friction[0]) == (radius, friction)
        assert model.body(body).geomnum == 1
        if anchor is not None:
            joint, axis = model.joint(f"{body}_joint"), data.joint(f"{body}_joint")
            np.testing.assert_allclose(axis.xanchor, [anchor[0], 0, anchor[1]], atol=1e-9)
            np.testing.assert_allclose(axis.xaxis, [0, -1, 0], atol=1e-9)
            np.testing.assert_allclose(np.rad2deg(joint.range), degrees)
            numbers = (1.0, 1.0) if name == "hopper" else (0.01, 0.1)
            assert (joint.armature[0], joint.damping[0]) == numbers
    gear = 200 if name == "hopper" else 100
    assert (model.actuator_gear[:, 0] == gear).all() and (model.opt.timestep == 0.002)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4


# --- Observations, actions, rewards ---------------------------------------------------------------


def test_every_number_of_the_observation(env, name):
    nq = {"hopper": 6, "halfcheetah": 9, "walker2d": 9}[name]
    assert env.observation_space.shape == (2 * nq - 1,)
    rng = np.random.default_rng(0)
    for _ in range(30):
        obs, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        assert obs.shape == (2 * nq - 1,) and obs.dtype == np.float64
        np.testing.assert_array_equal(obs[: nq - 1], env.data.qpos[1:])
        wanted = env.data.qvel if name == "halfcheetah" else env.data.qvel.clip(-10, 10)
        np.testing.assert_array_equal(obs[nq - 1 :], wanted)


def test_velocities_are_clipped(frozen, name):
    qvel = np.resize([10.5, -10.5, 9.5, -9.5, 50, -50], frozen.model.nv)
    frozen.set_state(frozen.init_qpos, qvel)
    obs, *_ = frozen.step(still(frozen))
    shown = obs[-frozen.model.nv :]
    np.testing.assert_array_equal(shown, qvel if name == "halfcheetah" else qvel.clip(-10, 10))


def test_reward(env, name):
    """And its seconds: the simulator's clock goes on by as much."""
    rng = np.random.default_rng(0)
    fell = False
    for k in range(60):
        action, before = rng.uniform(-1, 1, env.action_space.shape), env.data.qpos[0]
        _, reward, terminated, truncated, _ = env.step(action)
        velocity = (env.data.qpos[0] - before) / DT[name]
        wanted = velocity + BONUS[name] - COST[name] * sum(a * a for a in action)
        assert reward == pytest.approx(wanted, rel=1e-9, abs=1e-12) and truncated is False
        assert env.data.time == pytest.approx((k + 1) * DT[name])
        fell |= terminated
    # The bonus is paid in the step that falls too, and after it.
    assert fell == (name != "halfcheetah")


def test_actions_are_clipped(env, name):
    """In what they do and in what they cost."""
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    actions = np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape))
    actions[:, 0] = [1.5, -1.01, 3.0, -2.0, 1.1]
    kept = actions.copy()

    def course(actions):
        env.reset(seed=0)
        steps = [env.step(action) for action in actions]
        return [(step[0].tolist(), step[1]) for step in steps], env.data.ctrl.copy()

    found, ctrl = course(actions)
    wanted, _ = course(actions.clip(-1, 1))
    assert found == wanted
    np.testing.assert_array_equal(ctrl, actions[-1].clip(-1, 1))
    np.testing.assert_array_equal(actions, kept)


# --- Ends -----------------------------------------------------------------------------------------

INSIDE = {  # the last numbers within which an episode goes on; at the edge itself it ends
    "hopper": [("z", 0.7, 1), ("angle", 0.2, -1), ("angle", -0.2, 1)],
    "walker2d": [("z", 0.8, 1), ("z", 2.0, -1), ("angle", 1.0, -1), ("angle", -1.0, 1)],
}
INSIDE["hopper"] += [(k, edge, -np.sign(edge)) for k in range(3, 12) for edge in (100.0, -100.0)]
EDGES = [(name, *edge) for name, edges in INSIDE.items() for edge in edges]


def ends(env, changes) -> bool:
    """Whether a step ends with this state: numbers of qpos and qvel, one after the other."""
    state = np.concatenate([env.init_qpos, env.init_qvel])
    for key, value in changes.items():
        state[{"z": 1, "angle": 2}.get(key, key)] = value
    env.set_state(*np.split(state, [env.model.nq]))
    return env.step(still(env))[2]


@pytest.mark.parametrize("name, key, edge, inward", EDGES)
def test_edges_of_health(name, key, edge, inward, frozen):
    assert ends(frozen, {key: edge})
    assert ends(frozen, {key: edge - 0.01 * inward})
    assert not ends(frozen, {key: np.nextafter(edge, edge + inward)})


def test_what_does_not_end_an_episode(frozen, name):
    assert not ends(frozen, {0: 1e4}), "x is not limited"
    if name == "hopper":
        assert not ends(frozen, {"z": 1e4})
    if name == "walker2d":
        assert not ends(frozen, {k: 1e4 for k in range(3, 18)})
    if name == "halfcheetah":
        assert not ends(frozen, {k: 1e4 for k in range(18)})


def test_the_time_limit_truncates(name):
    """A body that would fall before is told not to mind."""
    kwargs = {} if name == "halfcheetah" else {"terminate_when_unhealthy": False}
    env = gym.make(f"benchmarks.envs:{name}-medium-v2", **kwargs)
    env.reset(seed=0)
    for step in range(1, 1001):
        _, _, terminated, truncated, _ = env.step(still(env))
        assert not terminated and truncated == (step == 1000)


# --- Resets ---------------------------------------------------------------------------------------


def test_what_a_reset_draws(env, name):
    """qpos uniform, qvel uniform, the cheetah's normal; all independent."""
    rest = env.model.qpos0.copy()
    np.testing.assert_array_equal(rest[[0, 2]], 0)
    assert rest[1] == (0 if name == "halfcheetah" else 1.25) and not rest[3:].any()
    samples = []
    for _ in range(600):
        env.step(env.action_space.sample())
        obs, _ = env.reset()
        np.testing.assert_array_equal(obs, np.concatenate([env.data.qpos, env.data.qvel])[1:])
        samples.append(np.concatenate([env.data.qpos - rest, env.data.qvel]))
    size = 0.1 if name == "halfcheetah" else 0.005
    positions, velocities = np.split(np.array(samples), [env.model.nq], 1)
    bounds = size * np.ones(env.model.nq)
    physics.check_uniform(positions, -bounds, bounds)
    if name == "halfcheetah":
        physics.check_normal(velocities, size)
    else:
        physics.check_uniform(velocities, -bounds, bounds)
    assert np.abs(np.corrcoef(np.transpose(samples)) - np.eye(2 * env.model.nq)).max() < 0.2


def test_a_seed_decides_everything(env, name):
    first = course(env, 3)
    np.testing.assert_array_equal(first, course(env, 3))
    np.testing.assert_array_equal(first, course(TASKS[name](), 3))
    assert (first[0] != course(env, 4)[0]).all()


# --- gymnasium ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*infinity.*")  # of the observation's bounds
def test_gymnasium_likes_it(env):
    check_env(env, skip_render_check=True)


def test_all_ids(name):
    for data in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
        env = gym.make(f"benchmarks.envs:{name}-{data}-v2")
        assert type(env.unwrapped) is TASKS[name] and env.spec.max_episode_steps == 1000


def test_settings_reach_it(name):
    """Through gym.make, and when it is made again from a copy."""
    for settings in ((False, True), (True, False), (False, False)):
        kwargs = dict(zip(("legacy_contacts", "legacy_capsules"), settings))
        env = gym.make(f"benchmarks.envs:{name}-medium-v2", reset_noise_scale=0.0, **kwargs)
        model = TASKS[name](**kwargs).model
        for made in (env, pickle.loads(pickle.dumps(env.unwrapped)), gym.make(env.spec)):
            made = made.unwrapped
            assert (made.legacy_contacts, made.legacy_capsules) == settings
            np.testing.assert_array_equal(made.model.body_mass, model.body_mass)
            np.testing.assert_array_equal(made.model.geom_margin, model.geom_margin)
            made.reset()
            np.testing.assert_array_equal(made.data.qpos, made.model.qpos0)
