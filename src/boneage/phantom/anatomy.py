"""The left hand by bone age and sex: which bones exist, how wide, how far fused, and where.

Ages are bone ages in months. Lengths are in units of PP3, the distance from the third
metacarpophalangeal to the third proximal interphalangeal joint centre. The origin is the
carpal centre, x points to the thumb, y down to the forearm.

Source: ages are those of the plates of Greulich & Pyle, Radiographic Atlas of Skeletal
Development of the Hand and Wrist, 2nd ed., 1959, checked against Gilsanz & Ratib, Hand
Bone Age, 2005. The appearance of the distal radius and ulna and a few girls' finger ages
are textbook means. Geometry: medians over 323 annotated RSNA radiographs.
"""

from dataclasses import dataclass

import numpy as np

from boneage.errors import BoneAgeError

OLDEST_MONTHS = 240.0
ADULT_MONTHS = 216
SEXES = ("M", "F")

Point = tuple[float, float]


@dataclass(frozen=True)
class PlateAges:
    """Ages at which one growth plate reaches its stages, as (boys, girls) in months.

    Attributes:
        appear: First bone in the epiphysis.
        full: The epiphysis is as wide as the metaphysis.
        cap: The epiphysis caps the metaphysis.
        fusing: The first bridge of bone, in the middle.
        fused: The line of fusion is complete.
    """

    appear: Point
    full: Point
    cap: Point
    fusing: Point
    fused: Point


def _finger(appear: Point, full: Point, fusing: Point, fused: Point) -> PlateAges:
    return PlateAges(appear, full, (168, 132), fusing, fused)


def _palm(appear: Point, fusing: Point, fused: Point) -> PlateAges:
    return PlateAges(appear, (156, 132), (170, 146), fusing, fused)


_DP, _MP, _PP = (96, 60), (144, 112), (150, 113)
_DP_FUSION = ((169, 146), (186, 162))
_MC_FUSION = ((180, 158), (204, 180))
_PP_FUSION = ((182, 161), (204, 180))
_MP_FUSION = ((184, 163), (204, 180))

PLATES: dict[str, PlateAges] = {
    "DP1": _finger((18, 15), _DP, *_DP_FUSION),
    "DP2": _finger((32, 27), _DP, *_DP_FUSION),
    "DP3": _finger((24, 24), _DP, *_DP_FUSION),
    "DP4": _finger((24, 24), _DP, *_DP_FUSION),
    "DP5": _finger((32, 27), _DP, *_DP_FUSION),
    "MP2": _finger((32, 20), _MP, *_MP_FUSION),
    "MP3": _finger((24, 18), _MP, *_MP_FUSION),
    "MP4": _finger((24, 18), _MP, *_MP_FUSION),
    "MP5": _finger((48, 30), _MP, *_MP_FUSION),
    "PP1": _finger((32, 24), _PP, *_PP_FUSION),
    "PP2": _finger((18, 12), (132, 106), *_PP_FUSION),
    "PP3": _finger((18, 12), _PP, *_PP_FUSION),
    "PP4": _finger((18, 12), _PP, *_PP_FUSION),
    "PP5": _finger((24, 18), _PP, *_PP_FUSION),
    "MC1": _palm((32, 24), (171, 150), (186, 168)),
    "MC2": _palm((18, 12), *_MC_FUSION),
    "MC3": _palm((18, 12), *_MC_FUSION),
    "MC4": _palm((18, 15), *_MC_FUSION),
    "MC5": _palm((18, 18), *_MC_FUSION),
    "ulna": PlateAges((72, 66), (162, 140), (180, 146), (188, 170), (216, 204)),
    "radius": PlateAges((13, 10), (156, 138), (180, 144), (192, 174), (228, 204)),
}


@dataclass(frozen=True)
class CentreAges:
    """Ages at which a round bone reaches its stages, as (boys, girls) in months.

    Attributes:
        appear: First bone.
        mature: Adult size and shape.
        pace: Size grows as the elapsed proportion of that time to this power; a small one means
            early growth.
    """

    appear: Point
    mature: Point
    pace: float = 0.6


# Carpals in their order of appearance.
CARPALS: dict[str, CentreAges] = {
    "capitate": CentreAges((3, 2), (156, 132), 0.36),
    "hamate": CentreAges((4, 3), (160, 136), 0.36),
    "triquetrum": CentreAges((24, 18), (162, 138)),
    "lunate": CentreAges((48, 30), (162, 138), 0.5),
    "scaphoid": CentreAges((66, 48), (164, 140)),
    "trapezium": CentreAges((72, 48), (164, 140)),
    "trapezoid": CentreAges((72, 48), (162, 138)),
    "pisiform": CentreAges((132, 114), (180, 156)),
}
SESAMOID = CentreAges((156, 132), (186, 162))
HAMATE_HOOK = CentreAges((132, 114), (168, 144))

JOINTS: dict[str, Point] = {
    "CMC1": (0.66, -0.02), "CMC2": (0.34, -0.15), "CMC3": (0.06, -0.18),
    "CMC4": (-0.19, -0.17), "CMC5": (-0.39, -0.13),
    "MCP1": (1.11, -0.86), "MCP2": (0.51, -1.60), "MCP3": (0.00, -1.59),
    "MCP4": (-0.42, -1.46), "MCP5": (-0.81, -1.24),
    "PIP1": (1.50, -1.39), "PIP2": (0.71, -2.44), "PIP3": (0.03, -2.59),
    "PIP4": (-0.58, -2.35), "PIP5": (-1.15, -1.85),
    "DIP2": (0.80, -2.92), "DIP3": (0.04, -3.17), "DIP4": (-0.66, -2.89), "DIP5": (-1.33, -2.21),
    "radius": (0.06, 0.58), "ulna": (-0.45, 0.60),
}  # fmt: skip
DISTAL_LENGTH = {1: 0.45, 2: 0.39, 3: 0.42, 4: 0.38, 5: 0.31}

# Percentage of mature height by bone age; before the published tables, hand length for age.
# Source: Bayley & Pinneau, J Pediatr 1952;40:423 (average maturers).
_GROWTH = {
    "M": ((0, 12, 24, 48, 84, 108, 132, 156, 168, 180, 192, 216, 222),
          (35, 44, 50, 58.5, 69.5, 75.2, 80.4, 87.6, 92.7, 96.8, 98.2, 99.6, 100)),
    "F": ((0, 12, 24, 48, 72, 96, 120, 132, 144, 156, 168, 192, 216),
          (37, 46, 53, 63, 72, 79, 86.2, 90.6, 92.2, 95.8, 98, 99.6, 100)),
}  # fmt: skip
_ADULT_PP3_CM = {"M": 4.9, "F": 4.4}


@dataclass(frozen=True)
class PlateState:
    """One growth plate at one age.

    Attributes:
        exists: Whether the epiphysis has begun to ossify.
        width: Epiphysis width over metaphysis width, 0 before it appears.
        height: Bony height over adult height of the epiphysis, 0..1.
        gap: Thickness of the lucent plate in units of PP3; cartilage at first.
        cap: How far the epiphysis reaches over the metaphysis, 0..1.
        bridge: Part of the plate's width bridged by bone, from the middle, 0..1.
        scar: Density of the line left by fusion, 0..1.
    """

    exists: bool
    width: float
    height: float
    gap: float
    cap: float
    bridge: float
    scar: float

    @property
    def is_open(self) -> bool:
        """Whether a lucent plate lies between two bones."""
        return self.exists and self.bridge < 1.0


def check_age_and_sex(age_months: float, sex: str) -> None:
    """Check a bone age and a sex.

    Raises:
        BoneAgeError: If sex is not "M" or "F", or the age is not within 0..240 months.
    """
    if sex not in SEXES:
        raise BoneAgeError(f"sex is {sex!r}; expected 'M' or 'F'. Pass one of the two.")
    if not 0 <= age_months <= OLDEST_MONTHS:
        raise BoneAgeError(
            f"bone age is {age_months!r} months; expected 0 to {OLDEST_MONTHS:g}. "
            "Pass the age in months."
        )


def _at(pair: Point, sex: str) -> float:
    return float(pair[SEXES.index(sex)])


def _ramp(age: float, start: float, end: float) -> float:
    return float(np.clip((age - start) / (end - start), 0.0, 1.0))


def plate_state(name: str, age_months: float, sex: str) -> PlateState:
    """State of the growth plate of one bone, continuous in age.

    The lucent plate closes over the first two thirds of fusion; in the last third, and for a time
    after it, only the scar shows.
    """
    ages = PLATES[name]
    appear, full, cap, fusing, fused = (
        _at(pair, sex) for pair in (ages.appear, ages.full, ages.cap, ages.fusing, ages.fused)
    )
    bridged = fusing + (fused - fusing) * 2 / 3
    half = appear + 0.15 * (full - appear)
    width = float(np.interp(age_months, (appear, half), (0.16, 0.5)))
    width += 0.5 * _ramp(age_months, half, full) ** 0.5
    width += 0.08 * _ramp(age_months, full, cap) - 0.05 * _ramp(age_months, fusing, fused)
    exists = age_months >= appear
    gap = float(np.interp(age_months, (appear, half, full, fusing, bridged),
                          (0.045, 0.035, 0.022, 0.017, 0.010)))  # fmt: skip
    scar = _ramp(age_months, fusing, bridged) - 0.9 * _ramp(age_months, bridged, fused + 12)
    return PlateState(
        exists=exists,
        width=width if exists else 0.0,
        height=min(1.0, 0.25 + 0.75 * width) if exists else 0.0,
        gap=gap,
        cap=_ramp(age_months, full, cap) if exists else 0.0,
        bridge=_ramp(age_months, fusing, bridged),
        scar=scar,
    )


def _grown(ages: CentreAges, age: float, sex: str) -> float:
    appear, mature = _at(ages.appear, sex), _at(ages.mature, sex)
    if age < appear:
        return 0.0
    return 0.16 + 0.84 * _ramp(age, appear, mature) ** ages.pace


def carpal_size(name: str, age_months: float, sex: str) -> float:
    """Linear size of a carpal's bone over its adult size: 0 before it appears, then 0.16..1."""
    return _grown(CARPALS[name], age_months, sex)


def sesamoid_size(age_months: float, sex: str) -> float:
    """Linear size of the thumb's adductor sesamoid over its adult size, 0 before it appears."""
    return _grown(SESAMOID, age_months, sex)


def hook_size(age_months: float, sex: str) -> float:
    """Linear size of the hook of the hamate over its adult size, 0 before it is seen."""
    return _grown(HAMATE_HOOK, age_months, sex)


def ulnar_styloid(age_months: float, sex: str) -> float:
    """Length of the ulnar styloid over its adult length, 0..1."""
    start, end = (96, 180) if sex == "M" else (84, 156)
    return _ramp(age_months, start, end)


def immaturity(age_months: float, sex: str) -> float:
    """Immaturity of the shafts: 1 in the newborn, 0 when their ends have their adult shape."""
    return 1.0 - _ramp(age_months, 0.0, 84.0 if sex == "M" else 66.0) ** 0.7


def pp3_cm(age_months: float, sex: str) -> float:
    """Expected length of PP3 in cm; its adult values, 4.9 and 4.4 cm, are rough."""
    ages, percent = _GROWTH[sex]
    return _ADULT_PP3_CM[sex] * float(np.interp(age_months, ages, percent)) / 100


def ossified(age_months: float, sex: str) -> list[str]:
    """Names of the ossification centres present beside the shafts: epiphyses, then carpals."""
    check_age_and_sex(age_months, sex)
    names = [name for name in PLATES if plate_state(name, age_months, sex).exists]
    names += [name for name in CARPALS if carpal_size(name, age_months, sex) > 0]
    return names + (["sesamoid"] if sesamoid_size(age_months, sex) > 0 else [])
