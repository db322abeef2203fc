"""What MuJoCo was when the data were made: contacts and capsules as they used to be.

The paper's tasks ran on MuJoCo 2.0 and 2.1. Today's engine moves the same models differently from
the first step on, for two reasons that can be undone in a model's specification before it is
compiled. Sources: MuJoCo's changelog; checked against trajectories of MuJoCo 2.3.7
(tests/make_trajectories.py) and, for capsules, which changed before that, against the masses that
used to be quoted.
"""

import mujoco
import numpy as np

LATER = (
    mujoco.mjtDisableBit.mjDSBL_NATIVECCD  # 3.3: its own collision routine for convex bodies
    | mujoco.mjtDisableBit.mjDSBL_MULTICCD  # 3.8: several contacts for each pair of them
    | mujoco.mjtDisableBit.mjDSBL_ISLAND  # 3.3.6: constraints are solved island by island
)


def use_legacy_contacts(spec: mujoco.MjSpec) -> None:
    """Two geoms are in contact within the larger of their margins; since MuJoCo 3.5 it is the sum.

    Halving every margin is exact where geoms that can meet have the same margin. What was added to
    collisions and solver since is switched off.
    """
    for geom in spec.geoms:
        geom.margin /= 2
    spec.option.disableflags |= int(LATER)


def use_legacy_capsules(spec: mujoco.MjSpec) -> None:
    """A capsule is as heavy as a cylinder of its radius r and of its middle part's length plus r.

    Since MuJoCo 2.1.1 masses and inertias of capsules are exact. Bodies of capsules alone are
    changed, each at its density; the model's total mass, where it prescribes one, is kept.
    """
    model = spec.compile()
    spec.compiler.inertiafromgeom = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_AUTO
    for body in spec.bodies:
        geoms = np.flatnonzero(model.geom_bodyid == body.id)
        if len(geoms) == 0 or (model.geom_type[geoms] != mujoco.mjtGeom.mjGEOM_CAPSULE).any():
            continue
        radius, length = model.geom_size[geoms, 0], 2 * model.geom_size[geoms, 1]
        volume, height = np.pi * radius**2 * (length + 4 / 3 * radius), length + radius
        density = model.body_mass[body.id] / volume.sum()
        masses = density * np.pi * radius**2 * height
        centre = masses @ model.geom_pos[geoms] / masses.sum()
        inertia = np.zeros((3, 3))  # about the centre, in the body's frame
        for geom, mass, r, h in zip(geoms, masses, radius, height):
            axes, across = np.empty(9), (3 * r**2 + h**2) / 12
            mujoco.mju_quat2Mat(axes, model.geom_quat[geom])
            axes, offset = axes.reshape(3, 3), model.geom_pos[geom] - centre
            inertia += mass * axes @ np.diag([across, across, r**2 / 2]) @ axes.T
            inertia += mass * (offset @ offset * np.eye(3) - np.outer(offset, offset))
        body.mass, body.ipos, body.explicitinertial = masses.sum(), centre, True
        body.fullinertia = inertia[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


class LegacyPhysics:
    """To stand before a gymnasium MujocoEnv among a class's bases: its model is compiled with the
    old engine's contacts and capsules, each unless its setting is False."""

    def __init__(self, *args, legacy_contacts=True, legacy_capsules=True, **kwargs):
        self.legacy_contacts, self.legacy_capsules = legacy_contacts, legacy_capsules
        super().__init__(*args, **kwargs)

    def specification(self) -> mujoco.MjSpec:
        """The model before it is compiled."""
        return mujoco.MjSpec.from_file(self.fullpath)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        spec = self.specification()
        if self.legacy_contacts:
            use_legacy_contacts(spec)
        if self.legacy_capsules:
            use_legacy_capsules(spec)
        model = spec.compile()
        # As in gymnasium: the framebuffer is as large as the picture that render is to give.
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)
