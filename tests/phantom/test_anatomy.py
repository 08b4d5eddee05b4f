import numpy as np
import pytest

from boneage.errors import BoneAgeError
from boneage.phantom import anatomy

AGES = [float(age) for age in range(241)]
SEX = pytest.mark.parametrize("sex", anatomy.SEXES)


def _months(name: str, sex: str, field: str) -> float:
    pair: tuple[float, float] = getattr(anatomy.PLATES[name], field)
    return pair[anatomy.SEXES.index(sex)]


@SEX
def test_carpals_ossify_in_order_and_reach_adult_size_once(sex: str) -> None:
    sizes = [[anatomy.carpal_size(name, age, sex) for age in AGES] for name in anatomy.CARPALS]
    first = [next(i for i, size in enumerate(found) if size > 0) for found in sizes]
    assert first == sorted(first)
    names = list(anatomy.CARPALS)
    assert (names[0], names[-1]) == ("capitate", "pisiform")
    for found in sizes:
        assert found == sorted(found)
        assert found[-1] == pytest.approx(1.0)


@SEX
def test_number_of_ossification_centres_never_falls_with_age(sex: str) -> None:
    counts = [len(anatomy.ossified(age, sex)) for age in AGES]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(anatomy.PLATES) + len(anatomy.CARPALS) + 1


@SEX
@pytest.mark.parametrize("name", list(anatomy.PLATES))
def test_each_plate_appears_widens_caps_and_fuses_in_that_order(name: str, sex: str) -> None:
    steps = [_months(name, sex, f) for f in ("appear", "full", "cap", "fusing", "fused")]
    assert steps == sorted(steps)
    before = anatomy.plate_state(name, steps[0] - 1, sex)
    assert not before.exists
    assert before.width == 0
    assert anatomy.plate_state(name, steps[1], sex).width == pytest.approx(1.0)
    assert anatomy.plate_state(name, steps[2], sex).width > 1.05
    assert anatomy.plate_state(name, steps[3], sex).is_open
    done = anatomy.plate_state(name, steps[4], sex)
    assert not done.is_open
    assert done.scar > 0


@SEX
@pytest.mark.parametrize("name", list(anatomy.PLATES))
def test_epiphysis_widens_and_plate_narrows_until_fusion(name: str, sex: str) -> None:
    ages = np.arange(_months(name, sex, "appear"), _months(name, sex, "fusing"))
    states = [anatomy.plate_state(name, age, sex) for age in ages]
    assert all(np.diff([state.width for state in states]) >= 0)
    assert all(np.diff([state.height for state in states]) >= 0)
    assert all(np.diff([state.gap for state in states]) <= 1e-9)


@SEX
def test_fusion_runs_from_the_fingertips_to_the_radius(sex: str) -> None:
    order = ["DP3", "MC1", "MC3", "PP3", "MP3", "ulna", "radius"]
    closed = [next(a for a in AGES if anatomy.plate_state(n, a, sex).bridge == 1) for n in order]
    starts = [_months(n, sex, "fusing") for n in order]
    assert closed == sorted(closed)
    assert starts[:5] == sorted(starts[:5])
    assert closed[-1] > closed[-2]


def test_girls_are_ahead_of_boys_of_the_same_age() -> None:
    for age in (36, 84, 132, 180):
        girls, boys = (
            sum(state.width / len(anatomy.PLATES) + state.bridge for state in states)
            for states in ([anatomy.plate_state(name, age, sex) for name in anatomy.PLATES]
                           for sex in "FM")
        )  # fmt: skip
        assert girls > boys


def test_every_plate_of_a_man_is_fused_with_a_scar_in_the_radius() -> None:
    states = {name: anatomy.plate_state(name, 217, "M") for name in anatomy.PLATES}
    assert not any(state.is_open for state in states.values())
    assert states["radius"].scar > 0.8
    assert states["DP3"].scar < states["radius"].scar


@SEX
@pytest.mark.parametrize(
    "size", [anatomy.sesamoid_size, anatomy.hook_size, anatomy.ulnar_styloid, anatomy.pp3_cm]
)
def test_late_signs_and_hand_size_grow_with_age(size, sex: str) -> None:  # type: ignore[no-untyped-def]
    values = [size(age, sex) for age in AGES]
    assert values == sorted(values)
    assert values[-1] > values[0]


@pytest.mark.parametrize(
    ("age", "sex", "message"),
    [
        (100, "U", r"sex is 'U'; expected 'M' or 'F'\. Pass one of the two\."),
        (-1, "M", r"bone age is -1 months; expected 0 to 240\. Pass the age in months\."),
        (300, "F", r"bone age is 300 months; expected 0 to 240\. Pass the age in months\."),
        (float("nan"), "F", r"bone age is nan months; expected 0 to 240"),
    ],
)
def test_impossible_age_or_sex_is_refused(age: float, sex: str, message: str) -> None:
    with pytest.raises(BoneAgeError, match=message):
        anatomy.check_age_and_sex(age, sex)
