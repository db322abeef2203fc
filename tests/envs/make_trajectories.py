# /// script
# requires-python = "==3.11.*"
# dependencies = ["mujoco==2.3.7", "numpy==1.26.4"]
# ///
"""Trajectories of the original models under an old MuJoCo, for the tests of the rebuilt tasks.

Not a test: it makes tests/envs/trajectories.npz, in an environment of its own, since MuJoCo
2.3.7 (older than the changes that the tasks undo) cannot be installed beside today's:

    python3.11 -m venv old && old/bin/pip install mujoco==2.3.7 numpy==1.26.4
    old/bin/python tests/envs/make_trajectories.py SITE_PACKAGES

SITE_PACKAGES is where the packages d4rl (ant, hands, kitchen) and gymnasium (locomotion) lie, whose
files of models are read and nothing else. For every task it holds qpos and qvel of the start, the
actions in [-1, 1] and qpos after each step (float32); for the hands the fields that a reset draws.

Mid-phase collision detection is off, since that of 2.3.7 misses contacts that are closer than their
margin but do not touch: with it the ant leaves today's engine at the first of them.
"""

import sys
from functools import partial
from pathlib import Path

import mujoco
import numpy as np

MAZE = (  # D4RL's large maze, written here again so that the fixture does not depend on our code
    "111111111111",
    "1R0001000001",
    "101101010101",
    "100000010001",
    "101111011101",
    "100101000001",
    "110101010111",
    "100100010G01",
    "111111111111",
)
HANDS = "d4rl/hand_manipulation_suite/assets/DAPG_{}.xml"
KITCHEN = "d4rl/kitchen/adept_envs/franka/assets/franka_kitchen_jntpos_act_ab.xml"
KITCHEN_START = """0.148388023 -1.76848573 1.84390296 -2.4768576 0.260252026 0.712533105 1.59515394
    0.0479267505 0.0371350919 -0.00026627985 -5.18043486e-05 3.1287722e-05 -4.51199853e-05
    -3.90842156e-06 -4.22629655e-05 6.28065475e-05 4.04984708e-05 0.000462730939 -0.000226906415
    -0.000465501369 -0.00644129196 -0.00177048263 0.00108009684 -0.26939744 0.350383255 1.61944683
    1.00618764 0.0040639512 -0.00662095997 -0.000268278933"""


def ant(site: Path) -> mujoco.MjModel:
    walls = "".join(
        f'<geom type="box" size="2 2 1" pos="{4 * (j - 1)} {4 * (i - 1)} 1" conaffinity="1"/>'
        for i, row in enumerate(MAZE)
        for j, cell in enumerate(row)
        if cell == "1"
    )
    xml = (site / "d4rl/locomotion/assets/ant.xml").read_text()
    return mujoco.MjModel.from_xml_string(xml.replace("</worldbody>", walls + "</worldbody>"))


def hand(site: Path, name: str) -> mujoco.MjModel:
    """With the actuators' gains that the environments set after loading."""
    model = mujoco.MjModel.from_xml_path(str(site / HANDS.format(name)))
    for first, last, gain in (("A_WRJ1", "A_WRJ0", 10), ("A_FFJ3", "A_THJ0", 1)):
        rows = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[rows, :3] = gain, 0, 0
        model.actuator_biasprm[rows, :3] = 0, -gain, 0
    return model


def servos(model: mujoco.MjModel, data: mujoco.MjData, action: np.ndarray) -> np.ndarray:
    """Where in the range of each actuator an action in [-1, 1] has it hold."""
    low, high = model.actuator_ctrlrange.T
    return (low + high) / 2 + action * (high - low) / 2


def record(model, substeps, actions, control, qpos=None, qvel=None) -> dict[str, np.ndarray]:
    """control(data, action) -> what the actuators get during the substeps of one step."""
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    data, course = mujoco.MjData(model), []
    data.qpos[:] = data.qpos if qpos is None else qpos
    data.qvel[:] = data.qvel if qvel is None else qvel
    mujoco.mj_forward(model, data)
    start = dict(qpos0=data.qpos.copy(), qvel0=data.qvel.copy())
    actions = np.float32(actions)
    for action in actions.astype(float):
        data.ctrl[:] = control(data, action)
        mujoco.mj_step(model, data, nstep=substeps)
        course.append(data.qpos.copy())
    return start | dict(actions=actions, qpos=np.array(course, np.float32))


def main() -> None:
    site, arrays = Path(sys.argv[1]), {}

    def keep(name: str, trajectory: dict[str, np.ndarray]) -> None:
        arrays.update({f"{name}/{key}": array for key, array in trajectory.items()})

    for seed in range(8):
        model, rng = ant(site), np.random.default_rng(seed)
        qpos = model.qpos0 + rng.uniform(-0.1, 0.1, model.nq)
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
        qvel, actions = 0.1 * rng.standard_normal(model.nv), rng.uniform(-1, 1, (200, 8))
        keep(f"ant{seed}", record(model, 5, actions, lambda _, a: 30 * a, qpos, qvel))
    # Gentle arms: where fingers are pressed into the table deeper than their radius the engines
    # differ. With these seeds the hand meets pen, door or ball, and less than that of the table.
    for name, seed, arm in (("pen", 5, 1.0), ("door", 2, 0.5), ("relocate", 3, 0.25)):
        model, rng = hand(site, name), np.random.default_rng(seed)
        if name == "pen":
            model.body("target").quat = 0.8, 0.4, 0.4, 0.2
            drawn = dict(target_quat=model.body("target").quat)
        elif name == "door":
            model.body("frame").pos = -0.25, 0.3, 0.3
            drawn = dict(frame_pos=model.body("frame").pos)
        else:
            model.body("Object").pos[:2] = 0.1, -0.05
            model.site("target").pos = 0.1, 0.1, 0.25
            drawn = dict(object_pos=model.body("Object").pos, target_pos=model.site("target").pos)
        # Neighbouring actions alike, so that the fingers close and meet what they handle.
        actions = np.repeat(rng.uniform(-1, 1, (10, model.nu)), 10, 0)
        actions[:, : model.nu - 24] *= arm
        trajectory = record(model, 5, actions, partial(servos, model))
        keep(name, trajectory | {key: np.array(value) for key, value in drawn.items()})
    bounds = np.array([2.9, 1.8, 2.9, 0, 2.9, 3.8, 2.9, 0.04, 0.04])
    lowest = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0, -2.9, 0, 0])
    qpos = np.array(KITCHEN_START.split(), float)
    qpos[26:30] /= np.linalg.norm(qpos[26:30])

    def servo(data, action):  # without the noise of the observation
        return np.clip(data.qpos[:9] + 2 * action * 0.08, lowest, bounds)

    for seed in (0, 1, 3):  # in 0 the arm touches nothing; in 1 and 3 kettle, stove and itself
        model = mujoco.MjModel.from_xml_path(str(site / KITCHEN))
        actions = np.repeat(np.random.default_rng(seed).uniform(-1, 1, (10, 9)), 10, 0)
        keep(f"kitchen{seed}", record(model, 40, actions, servo, qpos))
    for name, xml, substeps in (
        ("hopper", "hopper", 4),
        ("halfcheetah", "half_cheetah", 5),
        ("walker2d", "walker2d", 4),
    ):
        model = mujoco.MjModel.from_xml_path(str(site / f"gymnasium/envs/mujoco/assets/{xml}.xml"))
        actions = np.random.default_rng(0).uniform(-1, 1, (100, model.nu))
        keep(name, record(model, substeps, actions, lambda _, a: a))
    path = Path(__file__).parent / "trajectories.npz"
    np.savez_compressed(path, mujoco=mujoco.__version__, **arrays)
    print(path, f"{path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
