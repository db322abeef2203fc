"""The paper's Adroit tasks with binary rewards: a simulated hand turns a pen, opens a door, carries
a ball.

    gym.make("benchmarks.envs:pen-binary-v0")

Sources: the paper's fork of mj_envs (github.com/nakamotoo/mj_envs, 88fadb1) and D4RL (89141a6),
which has the same hands with dense rewards and actions in [-1, 1]. gymnasium-robotics has their
models, equal number by number when compiled, their actions, observations and resets. Rebuilt here
are the reward (there 10 or -0.1), the end of an episode and the old engine's contacts. The paper's
environments go on after a success; it is its program that ends the episode there, in training and
evaluation. What cannot be undone: the old engine took a finger's radius for the depth where a
finger is pressed into the table deeper than that.

Settings, of gym.make too: `legacy_contacts` and `legacy_capsules` of benchmarks.envs.old_engine,
both True; the latter is without effect, since the inertias of all bodies with capsules are given in
the files. The others are those of gymnasium's MujocoEnv, such as `render_mode`.
"""

import contextlib
import io

import numpy as np
from gymnasium.utils import EzPickle

from benchmarks.envs.old_engine import LegacyPhysics

with contextlib.redirect_stderr(io.StringIO()):  # a notice about its other environments
    from gymnasium_robotics.envs.adroit_hand import adroit_door, adroit_pen, adroit_relocate


class Binary(LegacyPhysics):
    """Reward: 0 on success, else -1. Success ends the episode. `achieved` tells from observations
    (T, obs) alone which of them, (T,), `step` would return with a success.

    Action: where the joints' servos shall hold, [-1, 1] for the range of each; for 0.01 s.
    Positions in an observation (m) are 0.002 s older than its angles (rad) and velocities, since
    the engine computes them at the beginning of a simulator step. After a reset they are not.
    """

    def __init__(self, **kwargs):
        super().__init__(reward_type="sparse", **kwargs)
        EzPickle.__init__(self, **kwargs)  # gymnasium-robotics' own misses the settings taken above

    def step(self, action):
        obs, _, _, _, info = super().step(action)
        success = bool(info["success"])
        return obs, success - 1.0, success, False, {"success": success}


class Pen(Binary, adroit_pen.AdroitHandPenEnv):
    """Turn a pen in the hand until it is as a target is. Action (24,).

    Observation (45,): angles of the hand (24), the pen's position (3), its velocities (6), axes
    of pen and target (3, 3), the pen's position less the target's (3), the same of the axes (3).
    Success: the positions are less than 0.075 m apart and the axes' cosine is above 0.95.
    Start: always the same but for the target, turned about x and y by up to 1 rad each.
    """

    @staticmethod
    def achieved(observations: np.ndarray) -> np.ndarray:
        cosine = (observations[:, 33:36] * observations[:, 36:39]).sum(1)
        return (np.linalg.norm(observations[:, 39:42], axis=1) < 0.075) & (cosine > 0.95)


class Door(Binary, adroit_door.AdroitHandDoorEnv):
    """Undo a latch and open the door. Action (28,).

    Observation (39,): positions of arm and hand (27, the arm's first slide is left out), angles of
    latch and door (1, 1), positions of palm and handle (3, 3), their difference (3), 1 if the door
    is open by more than 1 rad, else -1.
    Success: the door is open by 1.35 rad or more.
    Start: always the same but for the door's place, in a box of 0.1 x 0.1 x 0.098 m.
    """

    @staticmethod
    def achieved(observations: np.ndarray) -> np.ndarray:
        return observations[:, 28] >= 1.35


class Relocate(Binary, adroit_relocate.AdroitHandRelocateEnv):
    """Carry a ball to a place in the air. Action (30,).

    Observation (39,): positions of arm and hand (30), palm - ball (3), palm - target (3), ball -
    target (3).
    Success: the ball is less than 0.1 m from the target.
    Start: always the same but for the ball, 0.3 x 0.45 m, and the target, 0.4 x 0.4 x 0.2 m.
    """

    @staticmethod
    def achieved(observations: np.ndarray) -> np.ndarray:
        return np.linalg.norm(observations[:, 36:39], axis=1) < 0.1
