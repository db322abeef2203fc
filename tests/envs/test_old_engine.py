"""The old engine's contacts and capsules, on models of a few lines."""

import copy
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from physics import differing

from benchmarks.envs import adroit, antmaze, kitchen, locomotion, old_engine


def spec_of(world: str, rest: str = "") -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(f"<mujoco><worldbody>{world}</worldbody>{rest}</mujoco>")


def models(world: str, rest: str = "") -> tuple[mujoco.MjModel, mujoco.MjModel]:
    """Of today's engine, and with the old one's contacts."""
    spec = spec_of(world, rest)
    plain = spec.compile()
    old_engine.use_legacy_contacts(spec)
    return plain, spec.compile()


FIELDS = ("dim", "dist", "includemargin", "friction", "solref", "solimp")


def contacts(model) -> dict[frozenset, list]:
    """The contacts of each two geoms, by their numbers."""
    data, found = mujoco.MjData(model), {}
    mujoco.mj_forward(model, data)
    for contact in data.contact:  # copied, since it does not outlive data
        fields = {key: copy.copy(getattr(contact, key)) for key in FIELDS}
        pair = frozenset(map(int, contact.geom))
        found.setdefault(pair, []).append(SimpleNamespace(**fields))
    return found


def pairs(model) -> list[frozenset]:
    return [frozenset(pair) for pair in zip(model.pair_geom1.tolist(), model.pair_geom2.tolist())]


# --- Contacts -------------------------------------------------------------------------------------

BALL = '<body pos="{} 0 {}"><freejoint/><geom name="{}" size="0.1" margin="{}" {}/></body>'
FLOOR = '<geom name="floor" type="plane" size="9 9 1" margin="{}"/>'
APART = (-1e-4, 5e-5, 2e-4, 4e-4, 6e-4, 9e-4, 1.1e-3, 1.9e-3, 2.1e-3)  # m
MARGINS = [(0, 0.001, 0), (0.001, 0.001, 0), (0.001, 0.0003, 0), (0.0005, 0.001, 0.0003)]


@pytest.mark.parametrize("floor, first, second", MARGINS)
@pytest.mark.parametrize("apart", APART)
def test_contacts_within_the_larger_margin(floor, first, second, apart):
    """Not within the sum, whether the two have the model's largest margin or a smaller one."""
    world = FLOOR.format(floor)
    world += "".join(BALL.format(x, 0.1 + apart, x, m, "") for x, m in ((0, first), (1, second)))
    plain, old = map(contacts, models(world))
    for ball, margin in ((1, first), (2, second)):
        pair, larger = frozenset((0, ball)), max(floor, margin)
        assert (pair in plain) == (apart < floor + margin) and (pair in old) == (apart < larger)
        if pair in old:
            [contact] = old[pair]
            assert contact.dist == pytest.approx(apart, abs=1e-12)
            assert contact.includemargin == pytest.approx(larger, rel=1e-12)


def test_pairs_where_margins_differ_only():
    """Nothing is written out where half of the margin does; what is new is switched off."""
    world = FLOOR.format(0) + BALL.format(0, 1, "a", 0.001, "") + BALL.format(1, 1, "b", 0.001, "")
    plain, old = models(world)
    assert old.npair == 0 and set(old.geom_margin) == {0.0005}
    assert differing(old, plain) == {"geom_margin", "body_margin", "opt.disableflags"}
    flags = mujoco.mjtDisableBit
    switched_off = [flags.mjDSBL_NATIVECCD, flags.mjDSBL_MULTICCD, flags.mjDSBL_ISLAND]
    assert old.opt.disableflags == plain.opt.disableflags + sum(map(int, switched_off))
    _, old = models(world + BALL.format(2, 1, "c", 0, ""))
    assert pairs(old) == [frozenset((0, 3))] and (old.pair_margin, old.pair_gap) == (0, 0)


BOX = '<body pos="0 0 {}"><freejoint/><geom type="box" size="1 1 1" margin="{}" {}/></body>'
SOFT = 'solref="0.03 0.8" solimp="0.7 0.95 0.04 0.4 3"'


def forces(model, qpos) -> np.ndarray:
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    return np.array([data.efc_force, data.efc_aref, data.efc_D])[:, : data.nefc]


@pytest.mark.parametrize("margin", [0, 0.002])
@pytest.mark.parametrize("depth", [0.03, 0.01, 0.001])
def test_two_boxes_push_as_if_half_as_deep(margin, depth):
    """The forces are those of today's engine at half the depth."""
    world = '<geom type="box" size="2 2 1" {}/>'.format(f'margin="{margin}" {SOFT}')
    world += BOX.format(2, margin, SOFT)
    plain, old = models(world)
    assert pairs(old) == [frozenset((0, 1))]
    assert (old.pair_margin, old.pair_gap) == (2 * margin, -margin)
    np.testing.assert_allclose(old.pair_solref, [[0.03, 0.8 * np.sqrt(2)]])
    np.testing.assert_allclose(old.pair_solimp, [[0.7, 0.95, 0.08, 0.4, 3]])
    plain.geom_margin[:] = margin / 2  # so that their sum is the old margin
    plain.opt.disableflags = old.opt.disableflags
    place = np.array([0, 0, 2.0, 1, 0, 0, 0])
    deep = forces(old, place - [0, 0, depth, 0, 0, 0, 0])
    half = forces(plain, place - [0, 0, depth / 2, 0, 0, 0, 0])
    assert deep.shape == half.shape and deep.shape[1] >= 4 * 4 and half[0].max() > 1
    np.testing.assert_allclose(deep, half, rtol=1e-4)


@pytest.mark.parametrize("apart", [0.0019, 0.0021])
def test_two_boxes_meet_within_the_margin(apart):
    _, old = models(
        '<geom type="box" size="2 2 1" margin="0.002"/>' + BOX.format(2 + apart, 0.002, "")
    )
    assert (len(contacts(old)) > 0) == (apart < 0.002)


TREE = """
<geom size="1" {}/>
<body><geom size="1" {}/></body>
<body><freejoint/><geom size="1" {}/><geom size="1" {}/>
  <body><geom size="1" {}/><body><joint/><geom size="1" {}/></body></body>
  <body><joint/><geom size="1" {}/>
    <body><joint/><geom size="1" {}/><body><geom size="1" {}/></body></body>
  </body>
</body>
<body><joint/><geom size="1" {}/></body>
"""
# Far away, so that everything else has less than the largest margin.
SPECK = '<body pos="0 0 50"><geom size="1e-3" margin="0.5"/></body>'


@pytest.mark.parametrize("seed", range(10))
def test_only_pairs_that_would_meet(seed):
    """All in one place: contacts by themselves of all whose bits match, but for those of one body,
    of parent and child, and of two that stand still; the world's children meet it."""
    rng = np.random.default_rng(seed)
    bits = ['contype="{}" conaffinity="{}"'.format(*rng.integers(0, 4, 2)) for _ in range(10)]
    if seed == 0:
        bits = [""] * 10
    world = TREE.format(*bits) + SPECK
    plain, old = models(world)
    found = contacts(plain)
    assert set(pairs(old)) == set(found) == set(contacts(old)) and len(found) == old.npair
    assert len(found) > 3
    if seed == 0:
        one_body, parent_and_child = [(2, 3), (2, 4), (7, 8)], [(2, 6), (4, 5), (6, 7)]
        for pair in (*one_body, *parent_and_child, (0, 1)):
            assert frozenset(pair) not in found
        for pair in ((0, 2), (1, 9), (2, 7), (5, 6), (5, 8)):
            assert frozenset(pair) in found


def test_what_the_model_excludes_or_has_written_out():
    """Stays so: no contact of excluded bodies, and that of a pair once and with its own numbers."""
    world = FLOOR.format(0)
    world += "".join(
        BALL.format(x, 0.09, f"ball{x}", 0, "").replace("<body", f'<body name="body{x}"')
        for x in (0, 1, 2)
    )
    rest = '<contact><exclude body1="world" body2="body0"/>'
    rest += '<pair geom1="ball1" geom2="floor" condim="1" margin="0.02"/></contact>'
    plain, old = models(world + SPECK, rest)
    for model in (plain, old):
        found = contacts(model)
        assert {pair: len(each) for pair, each in found.items()} == {
            frozenset((0, 2)): 1,
            frozenset((0, 3)): 1,
        }
        [contact] = found[frozenset((0, 2))]
        assert (contact.dim, contact.includemargin) == (1, 0.02)


@pytest.mark.parametrize("seed", range(10))
def test_pairs_mix_as_the_engine_does(seed):
    """Friction and dimensions of contact by the larger, stiffness by weight."""
    rng = np.random.default_rng(seed)

    def numbers(low, high):
        return " ".join(map(str, rng.uniform(low, high)))

    world = ""
    for ball in range(4):
        kind = f'condim="{rng.choice([1, 3, 4, 6])}" solmix="{rng.uniform(0.1, 5)}"'
        kind += f' friction="{numbers([0.1] * 3, [2] * 3)}"'
        kind += f' solref="{numbers([0.01, 0.5], [0.1, 2])}"'
        kind += f' solimp="{numbers([0.1, 0.6, 0.001, 0.1, 1], [0.5, 0.99, 0.1, 0.9, 4])}"'
        world += BALL.format(0.01 * ball, 1, f"ball{ball}", 0, kind)
    plain, old = models(world + SPECK)
    theirs, ours = contacts(plain), contacts(old)
    assert old.npair >= 6 and set(theirs) == set(ours) and len(ours) == 6
    for pair in theirs:
        [wanted], [found] = theirs[pair], ours[pair]
        assert (found.dim, found.dist) == (wanted.dim, wanted.dist)
        for key in ("friction", "solref", "solimp", "includemargin"):
            value = getattr(found, key)
            np.testing.assert_allclose(value, getattr(wanted, key), rtol=1e-12, err_msg=key)


ENVIRONMENTS = [adroit.Pen, adroit.Door, adroit.Relocate, locomotion.Hopper, locomotion.HalfCheetah]
ENVIRONMENTS += [locomotion.Walker2d, kitchen.Kitchen, antmaze.AntMaze]


@pytest.mark.parametrize("task", ENVIRONMENTS)
def test_what_the_rules_leave_out_does_not_occur(task):
    """Priorities, weights of 0, stiffness given directly, gaps, and contacts of parent and child;
    of capsules alone, bodies whose inertia or mass is given beside geoms that are to tell it."""
    try:
        env = task(legacy_contacts=False)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    model, spec = env.model, env.specification()
    assert not model.geom_priority.any() and not model.geom_gap.any()
    assert (model.geom_solmix > 0).all() and (model.geom_solref > 0).all()
    assert not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_FILTERPARENT
    if spec.compiler.inertiafromgeom == mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_TRUE:
        assert not any(body.explicitinertial for body in spec.bodies)
        assert all(np.isnan(geom.mass) for geom in spec.geoms)
        assert list(spec.compiler.inertiagrouprange) == [0, 5]


# --- Capsules -------------------------------------------------------------------------------------


def cylinders(capsules, density) -> tuple[float, np.ndarray, np.ndarray]:
    """Mass, centre and inertia about it of cylinders (ends, radius), each as much longer than its
    ends are apart as its radius; summed up over points that make these integrals exact."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    angles = np.arange(8) * np.pi / 4
    points, masses = [], []
    for start, end, radius in capsules:
        start, end = np.array(start), np.array(end)
        length = np.linalg.norm(end - start)
        along = (end - start) / length
        across = np.linalg.svd(along[None])[2][1:]
        for s, ws in zip(nodes, weights):
            for t, wt in zip(nodes, weights):
                r, z = radius * (t + 1) / 2, (length + radius) / 2 * s
                for angle in angles:
                    ring = r * (np.cos(angle) * across[0] + np.sin(angle) * across[1])
                    points.append((start + end) / 2 + z * along + ring)
                    volume = (length + radius) / 2 * ws * radius / 2 * wt * r * np.pi / 4
                    masses.append(density * volume)
    points, masses = np.array(points), np.array(masses)
    centre = masses @ points / masses.sum()
    x = points - centre
    inertia = masses @ (x * x).sum(1) * np.eye(3) - (x.T * masses) @ x
    return masses.sum(), centre, inertia


def body_of(model, name) -> tuple[float, np.ndarray, np.ndarray]:
    body, axes = model.body(name), np.empty(9)
    mujoco.mju_quat2Mat(axes, body.iquat)
    axes = axes.reshape(3, 3)
    return body.mass[0], body.ipos, axes @ np.diag(body.inertia) @ axes.T


CAPSULES = {
    "one": [((0.1, 0.2, -0.1), (0.4, -0.2, 0.3), 0.05)],
    "two": [((0, 0, 0), (0.3, 0.1, 0), 0.08), ((0.3, 0.1, 0), (0.2, -0.5, 0.4), 0.03)],
}


def with_capsules(name, inertial="", compiler="", more="") -> mujoco.MjSpec:
    geom = '<geom type="capsule" fromto="{} {} {} {} {} {}" size="{}" density="700"/>'
    body = "".join(geom.format(*start, *end, radius) for start, end, radius in CAPSULES[name])
    world = f'<body name="limb" pos="1 2 3"><freejoint/>{inertial}{body}{more}</body>'
    return mujoco.MjSpec.from_string(
        f"<mujoco><compiler {compiler}/><worldbody>{world}</worldbody></mujoco>"
    )


@pytest.mark.parametrize("name", CAPSULES)
@pytest.mark.parametrize("compiler", ["", 'inertiafromgeom="true"'])
def test_capsules_as_cylinders(name, compiler):
    """Of their density; where their bodies are, and all else, stays."""
    spec = with_capsules(name, compiler=compiler)
    before = spec.compile()
    old_engine.use_legacy_capsules(spec)
    after = spec.compile()
    for found, wanted in zip(body_of(after, "limb"), cylinders(CAPSULES[name], 700)):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert after.body_mass[1] < before.body_mass[1]
    for key in differing(after, before):
        assert key.startswith(("body_", "dof_")) or key == "geom_sameframe"
    np.testing.assert_array_equal(after.body_pos, before.body_pos)


INERTIAL = '<inertial pos="0.1 0 0" mass="7" diaginertia="1 2 2.5"/>'
BALL_TOO = '<geom size="0.1"/>'


@pytest.mark.parametrize("settings", [dict(inertial=INERTIAL), dict(more=BALL_TOO)])
def test_other_bodies_are_left_alone(settings):
    """Whose inertia is given, or that have geoms of another kind."""
    spec = with_capsules("two", **settings)
    before = spec.compile()
    old_engine.use_legacy_capsules(spec)
    assert not differing(spec.compile(), before)


def test_a_total_mass_is_kept():
    """And shared out by the old masses."""
    spec = with_capsules("two", compiler='settotalmass="14"')
    spec.worldbody.add_body(name="ball").add_geom(size=[0.1, 0, 0], density=300)
    old_engine.use_legacy_capsules(spec)
    masses = [spec.compile().body(name).mass[0] for name in ("limb", "ball")]
    old = [cylinders(CAPSULES["two"], 700)[0], 300 * 4 / 3 * np.pi * 0.1**3]
    np.testing.assert_allclose(masses, 14 * np.array(old) / sum(old), rtol=1e-9)
