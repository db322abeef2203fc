"""What MuJoCo was when the data were made: contacts and capsules as they used to be.

The paper's tasks ran on MuJoCo 2.1, and their data are older. Today's engine moves the same models
differently from the first steps on, for reasons of two kinds that can be undone in a model's
specification before it is compiled. Sources: MuJoCo's changelog; checked against trajectories of
MuJoCo 2.3.7 (tests/envs/make_trajectories.py) and, for capsules, which changed before that, against
the masses that used to be quoted.
"""

import itertools

import mujoco
import numpy as np

LATER = (
    mujoco.mjtDisableBit.mjDSBL_NATIVECCD  # 3.3: its own collision routine for convex bodies
    | mujoco.mjtDisableBit.mjDSBL_MULTICCD  # 3.8: several contacts for each pair of them
    | mujoco.mjtDisableBit.mjDSBL_ISLAND  # 3.3.6: constraints are solved island by island
)

# What the engine counts when it has put a state that exploded back to the model's first.
LOST = [getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}") for what in ("QPOS", "QVEL", "QACC")]


def use_legacy_contacts(spec: mujoco.MjSpec) -> None:
    """Two geoms are in contact within the larger of their margins; since MuJoCo 3.5 it is the sum.

    So every geom gets half of the largest margin. Pairs that this does not fit are written out:
    those with smaller margins, and two boxes, whose depth of contact used to be half of what it is.
    What was added to collisions and solver since is switched off.
    """
    spec.option.disableflags |= int(LATER)
    model, largest = spec.compile(), max(geom.margin for geom in spec.geoms)
    for number, geom in enumerate(spec.geoms):
        geom.name = geom.name or f"geom{number}"  # a pair refers to names
    # Pairs ignore what the model excludes, and count twice beside those that it has.
    written = {frozenset((pair.geomname1, pair.geomname2)) for pair in spec.pairs}
    excluded = {frozenset((item.bodyname1, item.bodyname2)) for item in spec.excludes}
    for a, b in itertools.combinations(spec.geoms, 2):
        margin, boxes = max(a.margin, b.margin), a.type == b.type == mujoco.mjtGeom.mjGEOM_BOX
        if margin == largest and not boxes or not can_meet(model, a.id, b.id):
            continue
        if {a.name, b.name} not in written and {a.parent.name, b.parent.name} not in excluded:
            add_pair(spec, a, b, margin, half_depth=boxes)
    for geom in spec.geoms:
        geom.margin = largest / 2


def can_meet(model: mujoco.MjModel, a: int, b: int) -> bool:
    """Whether MuJoCo looks for contacts of two geoms: their bits match, and they belong to bodies
    that move against each other and are not parent and child."""
    bits = model.geom_contype[[a, b]] & model.geom_conaffinity[[b, a]]
    first, second = model.body_weldid[model.geom_bodyid[[a, b]]]
    parents = model.body_weldid[model.body_parentid[[first, second]]]
    related = first and second and (parents[0] == second or parents[1] == first)
    return bool(bits.any() and first != second and not related)


def add_pair(spec: mujoco.MjSpec, a, b, margin: float, half_depth: bool) -> None:
    """Two geoms' contact as MuJoCo combines it by itself, but with the margin given (m).

    half_depth: a contact at distance d is treated as if at d / 2. The force depends on stiffness
    times (d - margin): twice the margin and half the stiffness, that is sqrt(2) times the damping
    ratio, do the same, and a gap below 0 keeps contacts from being found further away than before.
    """
    share = a.solmix / (a.solmix + b.solmix)
    solref, solimp = (
        share * np.array(x) + (1 - share) * np.array(y)
        for x, y in ((a.solref, b.solref), (a.solimp, b.solimp))
    )
    slide, spin, roll = np.maximum(a.friction, b.friction)
    pair = spec.add_pair(geomname1=a.name, geomname2=b.name, condim=max(a.condim, b.condim))
    pair.friction, pair.margin = [slide, slide, spin, roll, roll], margin
    if half_depth:
        pair.margin, pair.gap = 2 * margin, -margin
        solref[1] *= np.sqrt(2)
        solimp[2] *= 2  # the width over which impedance grows, in metres of that distance
    pair.solref, pair.solimp = solref, solimp


def use_legacy_capsules(spec: mujoco.MjSpec) -> None:
    """A capsule is as heavy as a cylinder of its radius r and of its middle part's length plus r.

    Since MuJoCo 2.1.1 masses and inertias of capsules are exact. Changed are bodies of capsules
    alone whose inertia the model does not give; they keep their density, and the whole model its
    total mass where it prescribes one.
    """
    model, source = spec.compile(), mujoco.mjtInertiaFromGeom
    inferred = spec.compiler.inertiafromgeom == source.mjINERTIAFROMGEOM_TRUE
    spec.compiler.inertiafromgeom = source.mjINERTIAFROMGEOM_AUTO
    for body in spec.bodies:
        geoms = [geom.id for geom in body.geoms]
        capsules = (model.geom_type[geoms] == mujoco.mjtGeom.mjGEOM_CAPSULE).all()
        if len(geoms) == 0 or not capsules or (body.explicitinertial and not inferred):
            continue
        radius, height = model.geom_size[geoms, 0], model.geom_size[geoms] @ [1, 2, 0]
        masses = np.pi * radius**2 * height * [geom.density for geom in body.geoms]
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

    def do_simulation(self, ctrl, n_frames: int) -> None:
        """Raises: FloatingPointError where the engine has lost its way, as mujoco-py did; it puts
        the state back to the model's first and only counts it."""
        super().do_simulation(ctrl, n_frames)
        if any(self.data.warning[kind].number for kind in LOST):
            raise FloatingPointError("the simulation became unstable")

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
