"""D4RL's hopper, half-cheetah and walker, which gymnasium has as Hopper-v4, HalfCheetah-v4, ...

    gym.make("benchmarks.envs:hopper-medium-v2")

Source: D4RL 89141a6, which takes the v2 environments of gym and clips actions (gym_mujoco,
NormalizedBoxEnv). gymnasium's v4 has the same models, rewards, limits and resets; its v5 has not:
no bonus for the step that falls, and other feet of the walker. Rebuilt here are the clipping and
the old engine's contacts and capsules. The id of a dataset says nothing about the environment: all
hoppers are the same.

Settings, of gym.make too: `legacy_contacts` and `legacy_capsules` of benchmarks.envs.old_engine,
both True, and those of gymnasium's v4.
"""

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv
from gymnasium.utils import EzPickle

from benchmarks.envs.old_engine import LegacyPhysics


class Clipped(LegacyPhysics):
    """Actions outside [-1, 1] count as those at the edge, in the control cost too: the engine clips
    them anyhow, but v4 charges what it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        EzPickle.__init__(self, *args, **kwargs)  # gymnasium's own misses the settings taken above

    def step(self, action):
        return super().step(np.clip(action, -1.0, 1.0))


class Hopper(Clipped, HopperEnv):
    """One leg, to hop forward. Action (3,): torques of thigh, leg and foot, 1 = 200 N m.

    Observation (11,): qpos without x (5), qvel clipped to +-10 (6).
    Reward: velocity (m/s) + 1 - 0.001 |action|^2. Ends at a height of 0.7 m or less, a lean of
    0.2 rad or more, or any other number of the state that is 100 or more.
    """


class HalfCheetah(Clipped, HalfCheetahEnv):
    """Two legs, to run forward. Action (6,): torques, 1 = 120, 90, 60, 120, 60, 30 N m.

    Observation (17,): qpos without x (8), qvel (9).
    Reward: velocity (m/s) - 0.1 |action|^2. Never ends by itself.
    """


class Walker2d(Clipped, Walker2dEnv):
    """Two legs, to walk forward. Action (6,): torques of thigh, leg and foot, 1 = 100 N m.

    Observation (17,): qpos without x (8), qvel clipped to +-10 (9).
    Reward: velocity (m/s) + 1 - 0.001 |action|^2. Ends outside heights of 0.8 to 2 m or a lean of
    1 rad to either side.
    """
