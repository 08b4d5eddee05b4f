"""One person's left hand: bones and flesh placed in hand coordinates.

Coordinates and units as in `boneage.phantom.anatomy`: unit PP3, x to the thumb, y down.
Source: relative widths of the bones measured on public hand radiographs; cortical
thickness after Garn, The Earlier Gain and the Later Loss of Cortical Bone, 1970.
"""

from dataclasses import dataclass

import numpy as np

from boneage.phantom import anatomy
from boneage.phantom.anatomy import DISTAL_LENGTH, JOINTS
from boneage.phantom.bones import Ends, Nodule, TubularBone

Vector = np.ndarray

# Half widths of the third digit; the others are scaled by _GIRTH.
_MC = Ends(0.19, 0.128, 0.076, 0.120, 0.12, 0.20, dome=0.065, far_dome=0.015, far_tilt=0.01)
_MC1 = Ends(0.085, 0.125, 0.088, 0.125, 0.20, 0.20, dome=-0.02, far_dome=0.075)
_PP = Ends(0.068, 0.148, 0.078, 0.114, 0.20, 0.15, far_dome=0.03, far_notch=0.008)
_MP = Ends(0.060, 0.128, 0.070, 0.094, 0.22, 0.15, ridge=0.012, far_dome=0.03, far_notch=0.008)
_DP = Ends(0.055, 0.108, 0.044, 0.080, 0.21, 0.24, ridge=0.010, far_dome=0.05)
_RADIUS = Ends(0.105, 0.290, 0.155, 0.155, 0.22, 0.1, dome=-0.02, slope=0.080, depth=0.52)
_ULNA = Ends(0.10, 0.165, 0.088, 0.088, 0.20, 0.1, dome=0.03, depth=0.75)
_GIRTH = {1: 1.0, 2: 0.97, 3: 1.0, 4: 0.93, 5: 0.82}
_MC_BASE = {2: (0.165, 0.045), 3: (0.130, 0.03), 4: (0.108, -0.015), 5: (0.130, -0.05)}
_FOREARM = 2.6

# Adult outlines about their centres in a palm-down left hand, with the centres.
_CARPAL_SHAPES: dict[str, tuple[anatomy.Point, tuple[anatomy.Point, ...]]] = {
    "capitate": ((0.02, 0.09), (
        (-0.12, -0.22), (-0.02, -0.26), (0.11, -0.22), (0.16, -0.10), (0.14, 0.02), (0.14, 0.14),
        (0.08, 0.24), (-0.02, 0.27), (-0.12, 0.20), (-0.14, 0.06), (-0.13, -0.06))),
    "hamate": ((-0.25, 0.03), (
        (-0.17, -0.05), (-0.10, -0.14), (0.02, -0.17), (0.12, -0.15), (0.15, -0.03), (0.13, 0.12),
        (0.09, 0.23), (0.04, 0.24), (-0.02, 0.15), (-0.10, 0.06))),
    "triquetrum": ((-0.37, 0.28), (
        (-0.15, -0.02), (-0.10, -0.15), (0.01, -0.17), (0.12, -0.09), (0.16, 0.02), (0.11, 0.11),
        (0.03, 0.16), (-0.09, 0.15))),
    "lunate": ((-0.12, 0.44), (
        (-0.17, 0.00), (-0.11, -0.12), (0.02, -0.11), (0.15, -0.11), (0.17, 0.02), (0.10, 0.12),
        (-0.01, 0.14), (-0.13, 0.11))),
    "scaphoid": ((0.21, 0.36), (
        (-0.18, 0.11), (-0.13, 0.00), (-0.07, -0.07), (-0.01, -0.18), (0.08, -0.22), (0.17, -0.17),
        (0.19, -0.06), (0.12, 0.06), (0.02, 0.13), (-0.10, 0.17))),
    "trapezium": ((0.47, 0.08), (
        (-0.12, 0.01), (-0.08, -0.13), (0.00, -0.18), (0.09, -0.17), (0.12, -0.07), (0.13, 0.05),
        (0.12, 0.15), (0.02, 0.18), (-0.08, 0.12))),
    "trapezoid": ((0.32, -0.01), (
        (-0.13, 0.01), (-0.10, -0.09), (0.01, -0.12), (0.11, -0.09), (0.13, 0.01), (0.07, 0.10),
        (-0.05, 0.12))),
    "pisiform": ((-0.39, 0.27), (
        (-0.09, -0.02), (-0.03, -0.11), (0.06, -0.09), (0.09, 0.02), (0.03, 0.11), (-0.06, 0.09))),
}  # fmt: skip


@dataclass(frozen=True)
class Flesh:
    """A rounded cone of soft tissue from `start` to `end`, radii and half depths at both."""

    start: anatomy.Point
    end: anatomy.Point
    radii: anatomy.Point
    depths: anatomy.Point


@dataclass(frozen=True)
class Hand:
    """All bones, soft tissue and landmarks of a hand, in units of PP3.

    Attributes:
        landmarks: (x, y) by name: `carpus`, `radius`, `ulna`, `MCP1` to `MCP5`, `PIP1` (the
            thumb's interphalangeal joint) to `PIP5`, `DIP2` to `DIP5`, `tip1` to `tip5`.
        pp3_cm: Length of the unit in cm.
    """

    bones: tuple[TubularBone | Nodule, ...]
    flesh: tuple[Flesh, ...]
    landmarks: dict[str, anatomy.Point]
    pp3_cm: float


@dataclass(frozen=True)
class _Person:
    """One person: age, sex, build of the bones and posture."""

    age: float
    sex: str
    rng: np.random.Generator
    girth: float
    cortex: float
    density: float
    joints: dict[str, Vector]
    tips: dict[int, Vector]

    def bone_age(self) -> float:
        """The age of one bone: bones of one hand differ by a few months, less when young."""
        spread = min(2.5, 0.2 + 0.04 * self.age)
        return float(np.clip(self.age + self.rng.normal(0, spread), 0, anatomy.OLDEST_MONTHS))

    def seed(self) -> int:
        return int(self.rng.integers(0, 256))


def _rotate(point: Vector, about: Vector, radians: float) -> Vector:
    cos, sin = np.cos(radians), np.sin(radians)
    dx, dy = point - about
    return about + np.array([cos * dx - sin * dy, sin * dx + cos * dy])


def _posture(rng: np.random.Generator) -> tuple[dict[str, Vector], dict[int, Vector]]:
    """Joint centres and finger tips of one hand on the cassette."""
    joints = {name: np.array(point) for name, point in JOINTS.items()}
    spread = rng.normal(0.0, 0.05)
    for digit in range(1, 6):
        chain = ["PIP", "DIP"] if digit > 1 else ["MCP", "PIP"]
        knuckle = joints[f"MCP{digit}" if digit > 1 else "CMC1"].copy()
        fan = spread * {1: 1.5, 2: 0.9, 3: 0.0, 4: -0.9, 5: -2.0}[digit] + rng.normal(0, 0.025)
        if digit == 1:
            fan += rng.normal(-0.02, 0.13)
        stretch = 1 + rng.normal(0, 0.02)
        for joint in chain:
            here = _rotate(joints[f"{joint}{digit}"], knuckle, fan)
            joints[f"{joint}{digit}"] = knuckle + stretch * (here - knuckle)
    wrist = rng.normal(0.0, 0.06)
    for name in ("radius", "ulna"):
        joints[name] = _rotate(joints[name], np.array([0.0, 0.2]), wrist)
    tips = {}
    for digit, length in DISTAL_LENGTH.items():
        last, before = ("DIP", "PIP") if digit > 1 else ("PIP", "MCP")
        end = joints[f"{last}{digit}"]
        way = end - joints[f"{before}{digit}"]
        way = length * (1 + rng.normal(0, 0.03)) * way / np.hypot(*way)
        tips[digit] = _rotate(end + way, end, rng.normal(0, 0.03))
    joints["elbow"] = _rotate(np.array([-0.16, 0.6 + _FOREARM]), np.array([0.0, 0.2]), wrist)
    return joints, tips


def _person(age: float, sex: str, rng: np.random.Generator) -> _Person:
    joints, tips = _posture(rng)
    young = anatomy.immaturity(age, sex)
    return _Person(
        age=age,
        sex=sex,
        rng=rng,
        girth=(1 + 0.05 * young) * rng.normal(0.99, 0.045),
        cortex=float(np.interp(age, (0, 84, 216), (0.024, 0.031, 0.040))) * rng.normal(1, 0.08),
        density=float(np.interp(age, (0, 84, 216), (0.27, 0.29, 0.30))) * rng.normal(1, 0.08),
        joints=joints,
        tips=tips,
    )


def _scaled(ends: Ends, digit: int, girth: float, young: float) -> Ends:
    scale = _GIRTH[digit] * girth if digit else girth
    return Ends(
        **{**vars(ends), "near": ends.near * scale, "waist": ends.waist * scale * (1 + 0.2 * young),
           "far": ends.far * scale * (1 - 0.1 * young), "height": ends.height * scale,
           "dome": ends.dome * scale, "slope": ends.slope * scale}
    )  # fmt: skip


def _tubular(
    person: _Person, name: str, ends: Ends, joint: Vector, far: Vector, far_gap: float
) -> TubularBone:
    """A bone from its epiphyseal joint to `far_gap` short of the far joint."""
    way = far - joint
    length = float(np.hypot(*way))
    axis = way / length
    digit = int(name[-1]) if name[-1].isdigit() else 0
    age = person.bone_age()
    young = anatomy.immaturity(age, person.sex)
    origin = joint + axis * (0.014 + 0.012 * young)
    return TubularBone(
        name=name,
        origin=(float(origin[0]), float(origin[1])),
        axis=(float(axis[0]), float(axis[1])),
        length=length - far_gap - 0.014 - 0.012 * young,
        ends=_scaled(ends, digit, person.girth, young),
        plate=anatomy.plate_state(name, age, person.sex),
        cortex=person.cortex * (0.75 if name.startswith("DP") else 1.0),
        spongiosa=person.density,
        youth=young,
        bow=person.rng.normal(0, 0.010),
        warp=(
            person.rng.normal(0, 0.006) + 0.02 * (name == "radius"),
            person.rng.normal(0.004, 0.005),
        ),
        styloid=0.16 * anatomy.ulnar_styloid(age, person.sex) if name == "ulna" else 0.0,
        seed=person.seed(),
    )


def _fingers(person: _Person) -> list[TubularBone]:
    joints, bones = person.joints, []
    young = anatomy.immaturity(person.age, person.sex)
    head = 0.014 + 0.04 * young
    for digit in range(1, 6):
        cmc, mcp, pip = (joints[f"{joint}{digit}"] for joint in ("CMC", "MCP", "PIP"))
        if digit == 1:
            bones.append(_tubular(person, "MC1", _MC1, cmc, mcp, head))
        else:
            width, tilt = _MC_BASE[digit]
            ends = Ends(**{**vars(_MC), "far": width / _GIRTH[digit], "far_tilt": tilt})
            bones.append(_tubular(person, f"MC{digit}", ends, mcp, cmc, 0.12 * young - 0.02))
        bones.append(_tubular(person, f"PP{digit}", _PP, mcp, pip, head))
        last = pip
        if digit > 1:
            last = joints[f"DIP{digit}"]
            bones.append(_tubular(person, f"MP{digit}", _MP, pip, last, head))
        bones.append(_tubular(person, f"DP{digit}", _DP, last, person.tips[digit], 0.0))
    return bones


def _radii(outline: tuple[anatomy.Point, ...], roundness: float, wobble: Vector) -> Vector:
    """Outline as radii at equal angles, mixed with the circle of the same mean radius."""
    points = np.array(outline)
    angles = np.arctan2(points[:, 1], points[:, 0])
    knots = np.linspace(-np.pi, np.pi, 65)
    radii = np.interp(knots, angles, np.hypot(*points.T), period=2 * np.pi)
    ring = np.concatenate([radii[-3:-1], radii, radii[1:3]])
    radii = np.convolve(ring, (0.12, 0.22, 0.32, 0.22, 0.12), mode="valid")
    radii = (1 - roundness) * radii + roundness * radii[:-1].mean()
    waves = sum(w * np.cos(k * knots + 6 * w * k) for k, w in enumerate(wobble, start=2))
    return radii * (1 + waves)


def _nodules(person: _Person) -> list[Nodule]:
    rng, nodules = person.rng, []
    wrist = rng.normal(0, 0.012, 2)
    build = 1 + rng.normal(0, 0.03)

    def grow(name: str, centre: Vector, size: float, outline: tuple[anatomy.Point, ...],
             density: float, shell: float = 0.011) -> None:  # fmt: skip
        wobble = rng.normal(0, 0.018, 3)
        if size > 0:
            round_part = 1 - float(np.clip((size - 0.35) / 0.6, 0, 1))
            radii = 0.99 * build * size * _radii(outline, round_part, wobble)
            at = (float(centre[0]), float(centre[1]))
            nodules.append(Nodule(name, at, radii, density, shell, person.seed()))

    for name, (centre, outline) in _CARPAL_SHAPES.items():
        size = anatomy.carpal_size(name, person.bone_age(), person.sex)
        place = np.array(centre) + wrist + rng.normal(0, 0.012, 2)
        grow(name, place, size, outline, 0.80 * person.density)
    ring = tuple((0.05 * np.cos(a) - 0.01, 0.075 * np.sin(a)) for a in np.arange(-3, 3.1, 0.5))
    hook = anatomy.hook_size(person.bone_age(), person.sex)
    grow("hamate", np.array((-0.24, -0.02)) + wrist, hook, ring, 0.06, 0.016)
    bean = tuple((0.045 * np.cos(a), 0.06 * np.sin(a)) for a in np.arange(-3, 3.1, 0.5))
    mcp1, cmc1 = person.joints["MCP1"], person.joints["CMC1"]
    back = (cmc1 - mcp1) / np.hypot(*(cmc1 - mcp1))
    beside = mcp1 + 0.09 * back + 0.15 * np.array([-back[1], back[0]])
    size = anatomy.sesamoid_size(person.bone_age(), person.sex)
    grow("sesamoid", beside, size, bean, 1.2 * person.density)
    return nodules


def _flesh(person: _Person) -> tuple[Flesh, ...]:
    """Fingers as chains of cones; the palm, web, thenar and wrist as wide flat ones."""
    joints, rng = person.joints, person.rng
    young = anatomy.immaturity(person.age, person.sex)
    plump = (1 + 0.14 * young) * rng.normal(1.0, 0.06)
    parts: list[Flesh] = []

    def cone(a: Vector, b: Vector, radii: anatomy.Point, depths: anatomy.Point) -> None:
        r0, r1, d0, d1 = (float(plump * value) for value in (*radii, *depths))
        parts.append(
            Flesh((float(a[0]), float(a[1])), (float(b[0]), float(b[1])), (r0, r1), (d0, d1))
        )

    for digit in range(1, 6):
        scale = {1: 1.08, 2: 1.0, 3: 1.03, 4: 0.96, 5: 0.84}[digit]
        cmc, mcp, pip = (joints[f"{joint}{digit}"] for joint in ("CMC", "MCP", "PIP"))
        last = joints[f"DIP{digit}"] if digit > 1 else pip
        tip = person.tips[digit] - 0.06 * (person.tips[digit] - last)
        w = scale
        cone(mcp, pip, (0.240 * w, 0.195 * w), (0.21 * w, 0.17 * w))
        if digit > 1:
            cone(pip, last, (0.195 * w, 0.165 * w), (0.17 * w, 0.14 * w))
        cone(last, tip, (0.170 * w, 0.142 * w), (0.14 * w, 0.11 * w))
        palm = (0.26, 0.34) if digit > 1 else (0.27, 0.30)
        cone(mcp, cmc, palm, (0.24, 0.29))
    centre = np.array([0.0, 0.1])
    for digit in (2, 3, 4):
        knuckles = [joints[f"MCP{d}"] for d in (digit, digit + 1)]
        cone((knuckles[0] + knuckles[1]) / 2, centre, (0.26, 0.5), (0.20, 0.26))
        web = [m + 0.14 * (joints[f"PIP{digit + i}"] - m) for i, m in enumerate(knuckles)]
        cone(web[0], web[1], (0.13, 0.13), (0.15, 0.15))
    thumb, index = joints["MCP1"], joints["MCP2"]
    cone(0.75 * thumb + 0.25 * joints["CMC1"], 0.45 * index + 0.55 * joints["CMC2"],
         (0.24, 0.34), (0.19, 0.26))  # fmt: skip
    cone((thumb + joints["CMC1"]) / 2, (index + joints["CMC2"]) / 2, (0.24, 0.34), (0.30, 0.27))
    cone((thumb + joints["CMC1"]) / 2, np.array([0.2, 0.1]), (0.26, 0.45), (0.24, 0.28))
    arm = (joints["radius"] + joints["ulna"]) / 2 + [0.06, 0.1]
    cone(joints["MCP5"], joints["ulna"] + [0.05, -0.1], (0.28, 0.30), (0.20, 0.28))
    cone(joints["CMC1"], joints["radius"] + [0.22, 0.0], (0.28, 0.26), (0.26, 0.28))
    cone(centre, arm, (0.60, 0.62), (0.30, 0.31))
    cone(arm, joints["elbow"], (0.62, 0.70 + 0.05 * young), (0.31, 0.44))
    return tuple(parts)


def _landmarks(person: _Person) -> dict[str, anatomy.Point]:
    """Give the joints' centres and the finger tips by name; the carpus is the origin."""
    names = [name for name in JOINTS if not name.startswith("CMC")]
    tips = {f"tip{digit}": point for digit, point in person.tips.items()}
    places = {"carpus": np.zeros(2), **{name: person.joints[name] for name in names}, **tips}
    return {name: (float(x), float(y)) for name, (x, y) in places.items()}


def build_hand(age_months: float, sex: str, rng: np.random.Generator) -> Hand:
    """Draw one person's hand.

    Args:
        age_months: Bone age, 0..240.
        sex: "M" or "F".
        rng: Fixes stature, posture and the small differences between bones.
    """
    anatomy.check_age_and_sex(age_months, sex)
    person = _person(age_months, sex, rng)
    bones: list[TubularBone | Nodule] = [*_fingers(person)]
    elbow = person.joints["elbow"]
    for name, ends, shift in (("radius", _RADIUS, 0.24), ("ulna", _ULNA, -0.24)):
        far = elbow + np.array((shift, 0.0))
        bones.append(_tubular(person, name, ends, person.joints[name], far, 0.0))
    bones += _nodules(person)
    size = anatomy.pp3_cm(age_months, sex) * (1 + rng.normal(0, 0.05))
    return Hand(tuple(bones), _flesh(person), _landmarks(person), size)
