"""Single bones as solids: how much mineral a ray meets, and which pixels are bone or plate.

Lengths are in units of PP3, as in `boneage.phantom.anatomy`. A thickness is the length of solid
mineral along the ray, so overlapping bones add.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from boneage.phantom.anatomy import PlateState

Array = np.ndarray
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Exposed:
    """One bone in a patch of the image.

    Attributes:
        thickness: Mineral along the ray, float32, shape of the patch.
        bone: Where the bone is.
        plate: Where its growth plate is, or None when it has none.
    """

    thickness: Array
    bone: Array
    plate: Array | None = None


@dataclass(frozen=True)
class Ends:
    """The fixed shape of a kind of tubular bone, from its epiphyseal end to the far end.

    Attributes:
        height: Adult height of the epiphysis.
        near, waist, far: Half widths of metaphysis, mid-shaft and far end.
        near_flare, far_flare: How far the flares reach, as a part of the shaft.
        dome: Joint surface: positive convex (metacarpal head), negative a shallow cup.
        ridge: Median ridge of the joint surface.
        slope: Extra height of the epiphysis on the thumb side (distal radius).
        far_dome, far_notch, far_tilt: Roundness, notch and slant of the far end.
        depth: Thickness along the ray over width.
    """

    height: float
    near: float
    waist: float
    far: float
    near_flare: float = 0.17
    far_flare: float = 0.13
    dome: float = -0.012
    ridge: float = 0.0
    slope: float = 0.0
    far_dome: float = 0.05
    far_notch: float = 0.0
    far_tilt: float = 0.0
    depth: float = 0.85


@lru_cache(maxsize=1)
def _trabeculae() -> Array:
    """A tile of net-like texture, mean 0 and SD 1, the same in every process."""
    rng = np.random.default_rng(20170101)
    freq = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.rfftfreq(256), indexing="ij"))
    band = np.exp(-(((freq - 0.17) / 0.06) ** 2))
    waves = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((256, 256))) * band)
    net = np.exp(-np.abs(waves / waves.std()) * 1.6)
    return ((net - net.mean()) / net.std()).astype(np.float32)


def trabeculae(along: Array, across: Array, grain: float, seed: int) -> Array:
    """Texture at the given points, its meshes longer along the bone than across.

    Args:
        along: Position along the bone.
        across: Position across the bone.
        grain: Width of a texture cell; one sixth of a mesh.
        seed: Where in the repeating pattern the bone lies.
    """
    row = (along / (2.4 * grain)).astype(np.int32) + seed
    column = (across / grain + 4096).astype(np.int32) + 7 * seed
    return _trabeculae()[row & 255, column & 255]


def _soft_min(a: Array, b: Array, radius: float) -> Array:
    """Minimum of two distances with the corner rounded (a polynomial of Inigo Quilez)."""
    blend = np.maximum(radius - np.abs(a - b), 0.0)
    return np.minimum(a, b) - blend * blend / (4 * radius)


def _chord(depth: Array, radius: Array | float) -> Array:
    """Length of the ray through a round body, `depth` inside its outline."""
    inside = np.clip(depth, 0.0, radius)
    return 2 * np.sqrt(inside * (2 * radius - inside))


def _shell(depth: Array, radius: Array | float, cortex: Array | float, spongy: Array) -> Array:
    """Mineral in a round body with a solid cortex and spongy bone or marrow within."""
    inner = _chord(depth - cortex, np.maximum(radius - cortex, 1e-3))
    return np.maximum(_chord(depth, radius) - inner, 0.0) + spongy * inner


def _line(distance: Array, width: float) -> Array:
    return np.exp(-((distance / width) ** 2))


@dataclass(frozen=True)
class TubularBone:
    """A shaft with one growth plate, measured from the joint at its epiphyseal end.

    Attributes:
        name: As in `boneage.phantom.anatomy.PLATES`.
        origin: Place of the joint surface, (x, y).
        axis: Unit vector from there along the shaft.
        length: Distance from the origin to the far end of the shaft.
        ends: Shape.
        plate: State of the growth plate.
        cortex: Cortical thickness at mid-shaft.
        spongiosa: Density of the spongy bone in the metaphysis, 0..1.
        youth: 1 in the newborn, whose shafts have rounded ends; 0 in the schoolchild.
        bow: Sideways bulge of the shaft, to the thumb when positive.
        warp: Slant and cupping of the growth plate.
        styloid: Length of the ulnar styloid, in units of PP3.
        seed: Of the texture.
    """

    name: str
    origin: tuple[float, float]
    axis: tuple[float, float]
    length: float
    ends: Ends
    plate: PlateState
    cortex: float
    spongiosa: float
    youth: float = 0.0
    bow: float = 0.0
    warp: tuple[float, float] = (0.0, 0.0)
    styloid: float = 0.0
    seed: int = 0

    @property
    def metaphysis(self) -> float:
        """Distance from the origin to the shaft's side of the growth plate."""
        return self.ends.height + self.plate.gap

    def box(self) -> Box:
        """(x0, y0, x1, y1) that holds the bone."""
        wide = 1.25 * max(self.ends.near, self.ends.far) + 0.03
        over = self.styloid + abs(self.ends.slope) + 0.03
        (x, y), (ux, uy) = self.origin, self.axis
        xs = [x - over * ux, x + (self.length + 0.03) * ux]
        ys = [y - over * uy, y + (self.length + 0.03) * uy]
        px, py = abs(uy) * wide, abs(ux) * wide
        return min(xs) - px, min(ys) - py, max(xs) + px, max(ys) + py

    def expose(self, x: Array, y: Array, pixel: float) -> Exposed:
        """Mineral met by the rays at x, y (broadcast), with pixels of the given size."""
        (ox, oy), (ux, uy) = self.origin, self.axis
        side = 1.0 if uy < 0 else -1.0
        along = (x - ox) * ux + (y - oy) * uy
        across = side * ((y - oy) * ux - (x - ox) * uy)
        texture = trabeculae(along, across, 0.010, self.seed)
        tau = across / self.ends.near
        wing = np.clip(np.abs(tau), 0.0, 1.1)
        seam = self.metaphysis + 0.02 * self.plate.cap * wing**4
        seam = (
            seam
            + self.warp[0] * np.clip(tau, -1.1, 1.1)
            + (self.warp[1] + 0.03 * self.youth) * wing * wing
        )
        bridged = np.clip((1.15 * self.plate.bridge - np.abs(tau)) / 0.12, 0.0, 1.0)
        gap = self.plate.gap * (1 - bridged)
        thickness, bone = self._shaft(along, across, seam, bridged, texture, pixel)
        if not self.plate.exists:
            return Exposed(thickness, bone)
        epiphysis, cap = self._epiphysis(along, across, seam, gap, bridged, texture, pixel)
        thickness += epiphysis
        if self.plate.scar > 0:
            fade = bone | cap
            thickness += 0.06 * self.plate.scar * _line(along - seam + gap / 2, 0.012) * fade
        open_band = np.abs(along - seam + gap / 2) <= np.maximum(gap, 1.1 * pixel) / 2
        reach = self.ends.near * min(1.0, self.plate.width)
        plate = open_band & (np.abs(across) <= reach) & (bridged < 0.5)
        return Exposed(thickness, (bone | cap) & ~plate, plate if self.plate.is_open else None)

    def _shaft(
        self, along: Array, across: Array, seam: Array, bridged: Array, texture: Array, pixel: float
    ) -> tuple[Array, Array]:
        ends = self.ends
        part = np.clip((along - self.metaphysis) / (self.length - self.metaphysis), 0.0, 1.0)
        near = np.exp(-((part / ends.near_flare) ** 1.35))
        far = np.exp(-(((1 - part) / ends.far_flare) ** 1.6))
        across = across - 4 * self.bow * part * (1 - part)
        half = ends.waist + (ends.near - ends.waist) * near + (ends.far - ends.waist) * far
        tau = np.clip(across / ends.far, -1.0, 1.0)
        end = self.length - (ends.far_dome + 0.03 * self.youth) * tau**4 - ends.far_tilt * tau
        end = end - ends.far_notch * np.maximum(1 - 2.5 * tau * tau, 0.0)
        half = half * (1 - 0.07 * (1 - bridged) * _line(along - seam, 0.03))
        inside = _soft_min(half - np.abs(across), end - along, 0.06)
        # The shaft ends flat at the plate: seen from the side, it is as thick there as before it.
        inside = _soft_min(inside, (4 - 2.5 * self.youth) * (along - seam) + 2 * bridged, 0.06)
        cortex = self.cortex * (1 - 0.68 * near) * (1 - 0.62 * far)
        spongy = self.spongiosa * (0.12 + 0.78 * near**0.8 + 0.72 * far**0.6)
        spongy = spongy * (1 + 0.12 * texture)
        if self.plate.bridge < 1:
            white = (0.40 - 0.25 * self.youth) * (1 - bridged)
            spongy = spongy + white * _line(along - seam - 0.014, 0.016)
        cut = np.clip((along - seam) / pixel + 0.5, 0.0, 1.0)
        return ends.depth * cut * _shell(inside, half, cortex, spongy), (inside > 0) & (cut > 0.5)

    def _epiphysis(
        self,
        along: Array,
        across: Array,
        seam: Array,
        gap: Array,
        bridged: Array,
        texture: Array,
        pixel: float,
    ) -> tuple[Array, Array]:
        ends, plate = self.ends, self.plate
        half = ends.near * plate.width
        grown = min(1.0, plate.height)
        tau = across / half
        flat = np.clip(tau, -1.0, 1.0)
        height = ends.height * grown + ends.slope * grown * np.where(flat > 0, flat, 0.45 * flat)
        if ends.dome > 0:
            surface = ends.dome * (1 - np.sqrt(1 - 0.93 * flat * flat))
        else:
            surface = -ends.dome * (1 - flat * flat)
        surface = grown * (surface - ends.ridge * np.maximum(1 - 6 * flat * flat, 0.0))
        if self.styloid > 0:
            surface = surface - self.styloid * _line(flat + 0.62, 0.27)
        bottom = seam - gap
        top = bottom - height + surface
        middle = max(0.25 * float(ends.height) * grown, 0.006)
        flatness = 1 + 3 * np.clip((plate.width - 0.4) / 0.4, 0.0, 1.0)
        corner = min(half, 3 * middle, 0.06 + 0.8 * ends.slope)
        # Towards the joint the sides of a disc draw in; a domed head is round already.
        rise = np.clip((bottom - along) / max(4 * middle, 1e-3), 0.0, 1.0)
        taper = 0.22 if ends.dome < 0 and not ends.slope else 0.05
        sides = half * (1 - taper * grown * rise * rise) - np.abs(across)
        inside = _soft_min(sides, along - top, corner)
        inside = _soft_min(inside, flatness * (bottom - along) + 2 * bridged, corner / 2)
        radius = min(half, max(2.6 * middle, 0.5 * half))
        cut = np.clip((bottom + gap / 2 - along) / pixel + 0.5, 0.0, 1.0)
        spongy = self.spongiosa * (0.85 + 0.25 * texture) + 0.25 * _line(bottom - along, 0.012)
        shell = _shell(inside, radius, min(0.014, 0.3 * radius), spongy) * (half / radius)
        return ends.depth * cut * shell, (inside > 0) & (cut > 0.5)


@dataclass(frozen=True)
class Nodule:
    """A carpal, sesamoid or other rounded bone: a star-shaped outline about its centre.

    Attributes:
        name: Name of the bone it belongs to.
        centre: (x, y).
        radii: Distance from the centre to the outline at equal angles from -pi to pi,
            the last equal to the first.
        density: Density of the spongy bone, 0..1.
        shell: Thickness of the cortex; a nodule of shell only shows as a ring.
        seed: Of the texture.
    """

    name: str
    centre: tuple[float, float]
    radii: Array
    density: float
    shell: float = 0.011
    seed: int = 0

    def box(self) -> Box:
        """(x0, y0, x1, y1) that holds the bone."""
        (x, y), reach = self.centre, float(self.radii.max()) + 0.02
        return x - reach, y - reach, x + reach, y + reach

    def expose(self, x: Array, y: Array, pixel: float) -> Exposed:
        """Mineral met by the rays at x, y (broadcast), with pixels of the given size."""
        dx, dy = np.broadcast_arrays(x - self.centre[0], y - self.centre[1])
        angle = np.arctan2(dy, dx)
        knots = np.linspace(-np.pi, np.pi, len(self.radii))
        slope = np.gradient(self.radii, knots)
        lean = self.radii / np.hypot(self.radii, slope)
        edge = np.interp(angle, knots, self.radii)
        inside = ((edge - np.hypot(dx, dy)) * np.interp(angle, knots, lean)).astype(np.float32)
        radius = 0.75 * float(self.radii.mean())
        texture = trabeculae(2.4 * dy, dx, 0.010, self.seed)
        spongy = self.density * (1 + 0.15 * texture)
        return Exposed(_shell(inside, radius, min(self.shell, radius / 3), spongy), inside > 0)
