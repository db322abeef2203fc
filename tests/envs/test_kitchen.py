"""The kitchen: beside D4RL's own classes, moved as by the old engine, and number by number."""

import copy
import os
import pickle
import shutil
import time
import xml.etree.ElementTree as ET
from collections import deque, namedtuple
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import physics
import pytest
from gymnasium.utils.env_checker import check_env
from physics import course, d4rl, d4rl_module, differing, errors, still

from benchmarks import envs
from benchmarks.envs import kitchen, old_engine

TASKS = {  # in D4RL's order
    "complete": ["microwave", "kettle", "light switch", "slide cabinet"],
    "partial": ["microwave", "kettle", "light switch", "slide cabinet"],
    "mixed": ["microwave", "kettle", "bottom burner", "light switch"],
}
JOINTS = [f"robot:panda0_joint{number}" for number in range(1, 8)]  # in the observation's order
JOINTS += [f"robot:panda0_finger_joint{number}" for number in (1, 2)]
JOINTS += ["knob_Joint_1", "bottom_right_burner", "knob_Joint_2", "bottom_left_burner"]
JOINTS += ["knob_Joint_3", "top_right_burner", "knob_Joint_4", "top_left_burner"]
JOINTS += ["light_switch", "light_joint", "slide_cabinet"]
JOINTS += ["left_hinge_cabinet", "right_hinge_cabinet", "microwave"]
# Half-widths of the noise: arm and fingers, burners and their knobs, switch and slide, doors,
# kettle's place and, but for its last number, orientation.
NOISE = [0.01] * 9 + [5e-4] * 2 + [5e-5] * 6 + [5e-4] * 3 + [0.01] * 3 + [5e-4] * 3 + [0.01] * 3
NOISE = np.array([*NOISE, 5e-4])
# Of the positions that are asked for.
BOUNDS = np.array(
    [
        [-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0],
        [2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04],
    ]
)
DONE = {  # for each thing, where it counts as done
    "microwave": {22: -0.75},
    "kettle": dict(zip(range(23, 30), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06))),
    "light switch": {17: -0.69, 18: -0.05},
    "slide cabinet": {19: 0.37},
    "bottom burner": {11: -0.88, 12: -0.01},
}


@pytest.fixture(params=TASKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def kitchens():
    """One of each kind, since each takes half a second; every test resets the one that it takes."""
    return {name: kitchen.Kitchen(name) for name in TASKS}


@pytest.fixture
def env(kitchens, name):
    env = kitchens[name]
    env.noise = 1.0
    env.reset(seed=0)
    return env


@pytest.fixture
def exact(kitchens):
    """Complete's, without noise."""
    env = kitchens["complete"]
    env.noise = 0.0
    env.reset(seed=0)
    return env


def place(env, numbers: dict[int, float]) -> None:
    """Positions, by their place in the observation; the controller does not see them."""
    for where, value in numbers.items():
        env.data.qpos[where] = value


def freeze(env, monkeypatch):
    """From now on nothing moves in its steps."""
    monkeypatch.setattr(env.unwrapped, "do_simulation", lambda ctrl, n_frames: None)


# --- D4RL's own classes ---------------------------------------------------------------------------

FRANKA = "kitchen/adept_envs/franka"


def element(root, name, child, kind):
    """An attribute in D4RL's configuration: a number, or several."""
    numbers = np.array(root.find(name).get(child).split(), kind)
    return numbers if len(numbers) > 1 else numbers[0]


def their_code(model=None) -> SimpleNamespace:
    """D4RL's kitchen_envs, all that it stands on from D4RL too; the model from us."""
    plain = dict(configurable=lambda **_: lambda cls: cls, os=os)
    plain["spaces"] = SimpleNamespace(Box=physics.Ignorant)
    robot = d4rl_module(
        f"{FRANKA}/robot/franka_robot.py",
        base_robot=d4rl_module("kitchen/adept_envs/base_robot.py", deque=deque),
        get_config_root_node=lambda config_file_name: (ET.parse(config_file_name), ["Franka"]),
        read_config_from_node=element,
        cprint=lambda *_: None,
        namedtuple=namedtuple,
        time=time,
    )
    robot_env = d4rl_module(
        "kitchen/adept_envs/robot_env.py",
        mujoco_env=SimpleNamespace(MujocoEnv=physics.simulation(lambda path: model)),
        import_class_from_path=lambda path: getattr(robot, path.split(":")[1]),
        BaseRobot=None,
        Dict=dict,
        Optional=dict,
        MODELS_PATH="",
        **plain,
    )
    multitask = d4rl_module(f"{FRANKA}/kitchen_multitask_v0.py", robot_env=robot_env, **plain)
    return d4rl_module(
        "kitchen/kitchen_envs.py",
        KitchenTaskRelaxV1=multitask.KitchenTaskRelaxV1,
        OfflineEnv=physics.Ignorant,
        **plain,
    )


CLASSES = {
    "complete": "KitchenMicrowaveKettleLightSliderV0",
    "partial": "KitchenMicrowaveKettleLightSliderV0",
    "mixed": "KitchenMicrowaveKettleBottomBurnerLightV0",
}


def test_the_ids_are_d4rls(name):
    """But for the limit, which is that of the paper's fork."""
    entries = physics.registrations("kitchen/__init__.py")
    assert {f"kitchen-{name}-v0" for name in TASKS} == set(entries)
    assert set(entries) == {name for name in envs.NAMES if name.startswith("kitchen")}
    entry = entries[f"kitchen-{name}-v0"]
    assert entry["entry_point"] == f"d4rl.kitchen:{CLASSES[name]}"
    env = gym.make(f"benchmarks.envs:kitchen-{name}-v0")
    assert entry["max_episode_steps"] == 280 and env.spec.max_episode_steps == 1000
    assert type(env.unwrapped) is kitchen.Kitchen and env.spec.kwargs == {"tasks": name}


def test_goals_are_d4rls(name):
    """Things, where they are in the observation, goals and the distance from them."""
    code = their_code()
    assert getattr(code, CLASSES[name]).TASK_ELEMENTS == TASKS[name]
    assert set(kitchen.TASKS[name]) == set(TASKS[name]) and len(kitchen.TASKS[name]) == 4
    assert kitchen.NEAR == code.BONUS_THRESH == 0.3
    for thing, (where, values) in kitchen.GOALS.items():
        indices = np.arange(60)[where]
        np.testing.assert_array_equal(indices, code.OBS_ELEMENT_INDICES[thing])
        np.testing.assert_array_equal(values, code.OBS_ELEMENT_GOALS[thing])
        assert dict(zip(indices, values)) == DONE[thing]
    assert set(kitchen.GOALS) == {thing for things in TASKS.values() for thing in things}


def test_noise_and_bounds_are_d4rls():
    root = ET.parse(d4rl(f"{FRANKA}/robot/franka_config.xml"))
    rows = [f"qpos{number}" for number in range(30)]
    amplitudes = [element(root, row, "pos_noise_amp", float) for row in rows]
    np.testing.assert_allclose(kitchen.NOISE, 0.1 * np.array(amplitudes), rtol=1e-12)
    np.testing.assert_allclose(kitchen.NOISE, NOISE, rtol=1e-12)
    bounds = [element(root, row, "pos_bound", float) for row in rows[:9]]
    np.testing.assert_array_equal(np.stack([kitchen.LOWEST, kitchen.HIGHEST], 1), bounds)
    speeds = [element(root, row, "vel_bound", float) for row in rows[:9]]
    assert np.abs(speeds).min() > kitchen.SPEED, "so that it is never the bound of speed that holds"


def test_a_course_beside_d4rls(env, name):
    """An episode of D4RL's classes and of ours on one model, with the same draws: observations,
    controls, and what is done and when. Things are put where they are done, and away again."""
    theirs = getattr(their_code(env.model), CLASSES[name])()
    np.testing.assert_array_equal(theirs.init_qpos, kitchen.START)
    rng, things = np.random.default_rng(0), list(TASKS[name])
    rng.shuffle(things)

    def draw():
        shares = rng.uniform(size=30)  # ours draws all at once, theirs positions and velocities
        env.np_random = theirs.np_random = physics.Scripted(
            {30: shares, 9: shares[:9], 21: shares[9:]}
        )

    draw()
    first, wanted = env.reset()[0], theirs.reset()
    # The kettle's orientation was normalised by the engine then, here by the code.
    np.testing.assert_allclose(first, wanted, atol=0.01)
    theirs.data.qpos[:] = env.data.qpos
    theirs.sim.forward()
    total, ends = 0.0, 0
    for step in range(50):
        if step % 10 == 5:
            thing = things[step // 10] if step < 40 else None
            for each in (env, theirs):
                place(each, dict(enumerate(kitchen.START[9:], 9)))
                place(each, DONE[thing] if thing else {})
        action = rng.uniform(-1.3, 1.3, 9)
        draw()
        obs, reward, terminated, truncated, info = env.step(action)
        their_obs, new, done, _ = theirs.step(action)
        np.testing.assert_allclose(env.data.ctrl, theirs.data.ctrl, atol=1e-9)
        np.testing.assert_allclose(obs, their_obs, atol=1e-9)  # they round the noise otherwise
        # D4RL rewards what is new and ends when all is done; the fork sums up and goes on.
        total, ends = total + new, ends + done
        assert (reward, terminated, truncated) == (total, False, False)
        assert set(TASKS[name]) - set(info["completed"]) == theirs.tasks_to_complete
        assert done == (info["success"] == 1)
    assert total == 4 and ends == 15


# --- The model ------------------------------------------------------------------------------------

FOLLOWED = {0: 100, 1: 60, 3: 100}  # steps of each trajectory, by its seed


def test_follows_the_old_engine(exact):
    """In 0 the arm touches nothing; in 1 and 3 kettle, stove and itself."""
    for seed, steps in FOLLOWED.items():
        assert errors(exact, f"kitchen{seed}", steps=steps).max() < 1e-5


def test_todays_contacts_lead_elsewhere():
    env = kitchen.Kitchen(noise=0.0, legacy_contacts=False)
    for seed in FOLLOWED:
        assert errors(env, f"kitchen{seed}", steps=10).max() > 1e-4


@pytest.fixture
def their_spec(tmp_path):
    """D4RL's own files, with a default class wrapped as today's parser wants it."""
    source = d4rl("kitchen")
    main = f"{FRANKA.removeprefix('kitchen/')}/assets"
    for folder in (main, "adept_models/kitchen/assets"):
        shutil.copytree(source / folder, tmp_path / folder)
    for folder in ("meshes", "textures", "../scenes", "../../third_party"):
        (tmp_path / "adept_models/kitchen" / folder).symlink_to(
            source / "adept_models/kitchen" / folder
        )
    file = tmp_path / "adept_models/kitchen/assets/kettle_asset.xml"
    start, before, rest = file.read_text().partition('<default class="kettle">')
    inner, end, after = rest.rpartition("</default>")
    assert before and end
    file.write_text(f"{start}<default>{before}{inner}{end}</default>{after}")
    return mujoco.MjSpec.from_file(str(tmp_path / main / "franka_kitchen_jntpos_act_ab.xml"))


def test_the_model_is_d4rls(their_spec):
    """Every number but names, colours and pictures, of D4RL's file without two things in it that
    nothing of ours needs: a body held in place, for a teleoperator's controller, and a mark."""
    [weld] = [x for x in their_spec.equalities if x.type == mujoco.mjtEq.mjEQ_WELD]
    assert {weld.name1, weld.name2} == {"vive_controller", "world"}
    for extra in (weld, their_spec.body("vive_controller"), their_spec.site("target")):
        their_spec.delete(extra)
    ours = kitchen.Kitchen(legacy_contacts=False).model
    seen = {"geom_rgba", "mat_rgba", "mesh_pathadr", "tex_pathadr", "npaths"}
    assert differing(ours, their_spec.compile()) <= seen


def test_what_the_settings_change():
    """Contacts: margins, three switches, and pairs of geoms that do not share the largest margin or
    are both boxes. Capsules: nothing."""
    plain = kitchen.Kitchen(legacy_contacts=False, legacy_capsules=False).model
    contacts = kitchen.Kitchen(legacy_capsules=False).model
    changed = differing(contacts, plain, ignored=(*physics.NAMES, "npair", "pair"))
    assert changed == {"geom_margin", "body_margin", "opt.disableflags"}
    assert set(plain.geom_margin) == {0, 0.001} and (contacts.geom_margin == 0.0005).all()
    assert contacts.opt.disableflags == plain.opt.disableflags | int(old_engine.LATER)
    assert plain.npair == 0
    margins = plain.geom_margin[[contacts.pair_geom1, contacts.pair_geom2]].max(0)
    boxes = plain.geom_type[[contacts.pair_geom1, contacts.pair_geom2]] == mujoco.mjtGeom.mjGEOM_BOX
    assert ((margins == 0) | boxes.all(0)).all() and (margins == 0).any() and boxes.all(0).any()
    half = boxes.all(0)
    np.testing.assert_array_equal(contacts.pair_margin, np.where(half, 2, 1) * margins)
    np.testing.assert_array_equal(contacts.pair_gap, np.where(half, -margins, 0))

    assert not differing(kitchen.Kitchen().model, contacts)
    assert not differing(kitchen.Kitchen(legacy_contacts=False).model, plain)
    # Why: every body with a capsule has its inertia given, or geoms of other kinds as well.
    spec, kinds = kitchen.Kitchen().specification(), plain.geom_type
    for body in np.unique(plain.geom_bodyid[kinds == mujoco.mjtGeom.mjGEOM_CAPSULE]):
        alone = (kinds[plain.geom_bodyid == body] == mujoco.mjtGeom.mjGEOM_CAPSULE).all()
        assert spec.bodies[body].explicitinertial or not alone


# --- Observation and noise ------------------------------------------------------------------------


def test_every_number_of_the_observation(env, name):
    """Without noise: positions by the joints' names, then the goal."""
    env.noise = 0.0
    obs, _ = env.reset()
    assert env.observation_space == gym.spaces.Box(-8, 8, (60,), np.float64)
    goal = np.zeros(30)
    for thing in TASKS[name]:
        goal[list(DONE[thing])] = list(DONE[thing].values())
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert obs.shape == (60,) and obs.dtype == np.float64
        np.testing.assert_array_equal(obs[30:], goal)
        for where, joint in enumerate(JOINTS):
            assert [obs[where]] == env.data.joint(joint).qpos
        np.testing.assert_array_equal(obs[23:30], env.data.joint("kettle").qpos)
        obs, *_ = env.step(rng.uniform(-1, 1, 9))


def test_noise(env, name):
    """Uniform and independent, of these half-widths, at every look again; none on the goal."""
    goal = env.observe()[30:]
    samples = []
    for _ in range(600):
        obs = env.observe()
        np.testing.assert_array_equal(obs[:30], env.observed)
        np.testing.assert_array_equal(obs[30:], goal)
        samples.append(env.observed - env.data.qpos)
    physics.check_uniform(samples, -NOISE, NOISE)
    env.noise = 0.5
    samples = [env.observe()[:30] - env.data.qpos for _ in range(600)]
    physics.check_uniform(samples, -NOISE / 2, NOISE / 2)


def test_resets_and_steps_show_noise(env, name):
    """Of its own each, from the generator that the seed sets."""
    for look in (env.reset, lambda: env.step(still(env))):
        shown = look()[0]
        shares = (shown[:30] - env.data.qpos) / NOISE
        assert (shares != 0).all() and np.abs(shares).max() <= 1


# --- The controller -------------------------------------------------------------------------------


def test_the_controller_adds_to_what_was_observed(env, name):
    """The noise is in the targets: 2 rad/s for 0.08 s, from the last observation on."""
    assert env.action_space == gym.spaces.Box(-1, 1, (9,), np.float32)
    rng = np.random.default_rng(0)
    observed = env.reset()[0][:9]
    for _ in range(10):
        action = rng.uniform(-0.4, 0.4, 9)
        obs, *_ = env.step(action)
        wanted = (observed + 0.16 * action).clip(*BOUNDS)
        np.testing.assert_allclose(env.data.ctrl, wanted, rtol=0, atol=1e-15)
        assert (np.abs(observed - env.data.qpos[:9]) > 0).all()
        observed = obs[:9]


@pytest.mark.parametrize("side, action", [(0, -1), (1, 1)])
def test_targets_are_clipped_to_the_bounds(exact, monkeypatch, side, action):
    asked = []
    monkeypatch.setattr(exact, "do_simulation", lambda ctrl, n_frames: asked.append(ctrl))
    place(exact, dict(enumerate(BOUNDS[side])))
    exact.observe()
    exact.step(still(exact) + action)
    np.testing.assert_array_equal(asked, BOUNDS[[side]])


def test_actions_are_clipped(exact):
    action = np.array([1.5, -1.01, 3, -2, 1.1, 7, -9, 1, -1])
    kept = action.copy()
    exact.step(action)
    found, ctrl = exact.data.qpos.copy(), exact.data.ctrl.copy()
    exact.reset()
    exact.step(action.clip(-1, 1))
    np.testing.assert_array_equal(exact.data.qpos, found)
    np.testing.assert_array_equal(exact.data.ctrl, ctrl)
    np.testing.assert_array_equal(action, kept)


def test_a_step_is_40_of_the_simulators(exact):
    """Of 0.002 s, with the same target during all of them."""
    assert exact.model.opt.timestep == 0.002 and exact.dt == 0.08
    twin = copy.copy(exact.data)
    twin.ctrl[:] = (exact.data.qpos[:9] + 0.16 * 0.5).clip(*BOUNDS)
    for _ in range(40):
        mujoco.mj_step(exact.model, twin)
    exact.step(still(exact) + 0.5)
    np.testing.assert_array_equal(exact.data.qpos, twin.qpos)
    assert exact.data.time == pytest.approx(0.08)


# --- Reward ---------------------------------------------------------------------------------------


def test_reward_is_what_was_done_so_far(env, name, monkeypatch):
    """A thing counts once and goes on counting when it is undone; no end, even with all done; and
    a reset forgets it all."""
    freeze(env, monkeypatch)
    start = dict(enumerate(kitchen.START))
    for _ in range(2):
        env.reset()
        done = []
        for thing in (None, *TASKS[name], None, TASKS[name][0], None):
            place(env, start | (DONE[thing] if thing else {}))
            if thing and thing not in done:
                done.append(thing)
            _, reward, terminated, truncated, info = env.step(still(env))
            assert (reward, terminated, truncated) == (len(done), False, False)
            assert info == {"success": len(done) / 4, "completed": sorted(done)}
            assert type(reward) is float and type(info["success"]) is float
        assert reward == 4.0
    other = {"slide cabinet", "bottom burner"} - set(TASKS[name])
    env.reset()
    place(env, DONE[other.pop()])
    assert env.step(still(env))[1] == 0, "it is not asked for here"


def test_several_at_once(env, name, monkeypatch):
    freeze(env, monkeypatch)
    for thing in TASKS[name]:
        place(env, DONE[thing])
    _, reward, terminated, _, info = env.step(still(env))
    assert (reward, terminated, info["success"]) == (4.0, False, 1.0)
    assert info["completed"] == sorted(TASKS[name])


AWAY = [(thing, where) for thing, numbers in DONE.items() for where in numbers]


@pytest.mark.parametrize("thing, where", AWAY)
def test_done_is_nearer_than_03(kitchens, thing, where, monkeypatch):
    """By each of its numbers, to both sides; and all of them in one norm."""
    env = kitchens["mixed" if thing == "bottom burner" else "complete"]
    env.noise = 0.0
    freeze(env, monkeypatch)
    for sign in (-1, 1):
        for distance, success in ((0.299999, True), (0.300001, False)):
            env.reset()
            place(env, DONE[thing] | {where: DONE[thing][where] + sign * distance})
            assert env.step(still(env))[4]["completed"] == ([thing] if success else [])
    if len(DONE[thing]) > 1:
        env.reset()
        shares = 0.2999999 / np.sqrt(len(DONE[thing]))
        place(env, {where: value + shares for where, value in DONE[thing].items()})
        assert env.step(still(env))[1] == 1
        env.reset()
        place(env, {where: value + 1.00001 * shares for where, value in DONE[thing].items()})
        assert env.step(still(env))[1] == 0


def test_at_03_itself_it_is_not_done(exact, monkeypatch):
    freeze(exact, monkeypatch)
    monkeypatch.setattr(kitchen, "NEAR", 0.25)  # a number that can be met exactly
    place(exact, {22: -0.5})
    assert exact.step(still(exact))[1] == 0
    place(exact, {22: np.nextafter(-0.5, -1)})
    assert exact.step(still(exact))[1] == 1


def test_done_is_judged_by_what_is_observed(env, name, monkeypatch):
    """The microwave's noise is 0.01 wide to each side."""
    freeze(env, monkeypatch)
    outside, inside = -0.445, -0.455  # by 0.005, of 0.3 from the goal at -0.75
    for position, share, success in (
        (outside, 0.5, False),
        (outside, 0.0, True),
        (inside, 0.5, True),
        (inside, 1.0, False),
    ):
        env.np_random = physics.Scripted({30: np.full(30, 0.5)})
        env.reset()
        env.np_random = physics.Scripted({30: np.full(30, share)})
        place(env, {22: position})
        assert (env.step(still(env))[1] == 1) == success


# --- Reset, limit, gymnasium ----------------------------------------------------------------------


def test_every_episode_begins_alike(env, name):
    """But for the observation's noise: D4RL's positions, the kettle's quaternion normalised."""
    wanted = kitchen.START.copy()
    norm = np.linalg.norm(wanted[26:30])
    assert norm == pytest.approx(1.0062, abs=1e-4)
    wanted[26:30] /= norm
    for _ in range(3):
        env.step(env.action_space.sample())
        obs, _ = env.reset()
        np.testing.assert_array_equal(env.data.qpos, wanted)
        assert not env.data.qvel.any() and env.data.time == 0
        assert np.abs(obs[:30] - wanted).max() <= 0.01 and env.completed == set()


def test_the_time_limit_truncates(name, monkeypatch):
    env = gym.make(f"benchmarks.envs:kitchen-{name}-v0")
    env.reset(seed=0)
    freeze(env, monkeypatch)
    for thing in TASKS[name]:
        place(env.unwrapped, DONE[thing])  # all done, and still no end
    for step in range(1, 1001):
        _, reward, terminated, truncated, _ = env.step(still(env))
        assert (reward, terminated) == (4.0, False) and truncated == (step == 1000)


def test_a_seed_decides_everything(kitchens):
    """And the data's name nothing: complete and partial are one environment."""
    env = kitchens["complete"]
    env.noise = kitchens["partial"].noise = 1.0
    first = course(env, 3)
    np.testing.assert_array_equal(first, course(env, 3))
    np.testing.assert_array_equal(first, course(kitchens["partial"], 3))
    assert (first[0, :30] != course(env, 4)[0, :30]).all()
    env.reset(seed=3)
    assert (env.reset()[0][:30] != first[0, :30]).all(), "an episode after it has other noise"


def test_gymnasium_likes_it(env):
    check_env(env, skip_render_check=True)


def test_settings_reach_it():
    """Through gym.make, and when it is made again from a copy."""
    env = gym.make("benchmarks.envs:kitchen-mixed-v0", legacy_contacts=False, noise=0.0)
    for made in (env, pickle.loads(pickle.dumps(env.unwrapped)), gym.make(env.spec)):
        made = made.unwrapped
        assert (made.legacy_contacts, made.legacy_capsules, made.noise) == (False, True, 0.0)
        assert made.model.npair == 0 and set(made.tasks) == set(TASKS["mixed"])
    env = gym.make("benchmarks.envs:kitchen-mixed-v0").unwrapped
    assert (env.legacy_contacts, env.legacy_capsules, env.noise) == (True, True, 1.0)
    assert env.model.npair > 0
