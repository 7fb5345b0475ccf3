"""What a 3D room is, and the MuJoCo studio that draws it.

- `Scene`: a walled floor under the sky with cubes, spheres and cylinders; `make_scene` draws lots.
- `Studio`: pictures of scenes, and which pixel shows which object.

The rooms are those of SPACE (Lin et al. 2020, arXiv 2001.02407, section 4 and appendix E). The
paper tells kinds, counts and how many colours; every measure and colour here is ours.

Letters: n objects of a scene, H W pixels.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]

SHAPES = ("cube", "sphere", "cylinder")
COUNTS = {"small": (4, 8), "large": (18, 24)}
"""Fewest and most objects, the paper's."""
SIZES = {"small": (0.30, 0.60), "large": (0.22, 0.42)}
"""Least and largest half side or radius: more objects have to be smaller to find room."""
REACH = 2.8
"""How far from the room's centre objects reach, so that the camera has them all in view."""
COLOURS = np.array(
    [
        *([0.85, 0.15, 0.15], [0.95, 0.55, 0.10], [0.95, 0.90, 0.20], [0.20, 0.70, 0.25]),
        *([0.20, 0.80, 0.85], [0.15, 0.25, 0.85], [0.60, 0.20, 0.75], [0.95, 0.50, 0.75]),
    ]
)
"""(8, 3) RGB in [0, 1] that objects have."""
ROOM_COLOURS = np.array(
    [
        *([0.60, 0.60, 0.62], [0.75, 0.66, 0.50], [0.45, 0.58, 0.72]),
        *([0.50, 0.66, 0.52], [0.70, 0.50, 0.52]),
    ]
)
"""(5, 3) RGB in [0, 1] that walls, floor and sky have."""


@dataclass(frozen=True)
class Scene:
    """A room with n objects; the unit of length is a thirteenth of the room's side.

    Attributes:
        shape: (n,) int64, which of `SHAPES`.
        half: (n,) half the side of a cube; the radius of others, and half a cylinder's height.
        place: (n, 2) where objects stand; the room's centre is 0.
        turn: (n,) angle about the vertical, in radians.
        colour: (n, 3) RGB in [0, 1].
        room: (3, 3) RGB of walls, floor and sky.
        azimuth: where the camera looks to, in degrees.
        elevation: how far it looks up, in degrees; negative.
    """

    shape: npt.NDArray[np.int64]
    half: Numbers
    place: Numbers
    turn: Numbers
    colour: Numbers
    room: Numbers
    azimuth: float
    elevation: float


def make_scene(which: str, rng: np.random.Generator) -> Scene:
    """Draw lots for a room; `which` is a key of `COUNTS`. No two objects touch."""
    least, most = COUNTS[which]
    count = int(rng.integers(least, most + 1))
    shape = rng.integers(len(SHAPES), size=count)
    half = rng.uniform(*SIZES[which], size=count)
    return Scene(
        shape=shape,
        half=half,
        place=_places(np.where(shape == SHAPES.index("cube"), np.sqrt(2), 1) * half, rng),
        turn=rng.uniform(0, np.pi / 2, count),
        colour=COLOURS[rng.integers(len(COLOURS), size=count)],
        # Three different ones, or a floor could end nowhere.
        room=ROOM_COLOURS[rng.permutation(len(ROOM_COLOURS))[:3]],
        azimuth=float(rng.uniform(0, 360)),
        elevation=float(rng.uniform(-36, -26)),
    )


def _places(radius: Numbers, rng: np.random.Generator) -> Numbers:
    """(n, 2) centres of circles that stay apart and within `REACH`."""
    places = np.zeros((len(radius), 2))
    order = np.argsort(-radius)  # large ones first, while there is room for them
    while True:
        for rank, mine in enumerate(order):
            others = order[:rank]
            angle, far = rng.uniform(0, 2 * np.pi, 200), np.sqrt(rng.uniform(0, 1, 200))
            tries = (REACH - radius[mine]) * np.stack([far * np.cos(angle), far * np.sin(angle)], 1)
            gaps = np.linalg.norm(tries[:, None] - places[others], axis=-1) - radius[others]
            free = (gaps > radius[mine] + 0.05).all(axis=1)
            if not free.any():
                break  # too crowded: begin again
            places[mine] = tries[free.argmax()]
        else:
            return places


# The lamp hangs right above the centre, and its shadow map (shadowscale) just covers the objects:
# with light from the side, or a coarser map, the floor is full of dots that shade themselves.
# With a zfar of 2.2, which would do for the walls, the sky shows through the room's corners.
_MODEL = """<mujoco>
<statistic center="0 0 0" extent="10"/>
<visual>
  <global offwidth="{size}" offheight="{size}" fovy="50"/>
  <quality shadowsize="256" offsamples="4"/>
  <headlight ambient=".4 .4 .4" diffuse=".2 .2 .2" specular="0 0 0"/>
  <map znear=".2" zfar="5" shadowscale=".42"/>
</visual>
<asset>
  <texture type="skybox" builtin="flat" width="8" height="8" rgb1="1 1 1" rgb2="1 1 1"/>
</asset>
<worldbody>
  <light pos="0 0 9" dir="0 0 -1" cutoff="60" exponent="1"
    diffuse=".6 .6 .6" specular=".3 .3 .3"/>
  <geom type="box" size="6.7 6.7 .5" pos="0 0 -.5"/>
  <geom type="box" size=".1 6.7 .9" pos="6.6 0 .9"/>
  <geom type="box" size=".1 6.7 .9" pos="-6.6 0 .9"/>
  <geom type="box" size="6.7 .1 .9" pos="0 6.6 .9"/>
  <geom type="box" size="6.7 .1 .9" pos="0 -6.6 .9"/>
  {objects}
</worldbody>
</mujoco>"""
_OBJECT = '<geom type="box" size="1 1 1"/>'
_BUILT = 5  # geoms before the objects: the floor and four walls


class Studio:
    """Draws scenes: one MuJoCo model, whose objects are moved and painted for every picture.

    Attributes:
        backend: the module of MuJoCo that it draws by.

    Example:
        >>> studio = Studio("small")  # doctest: +SKIP
        >>> frame = studio.draw(make_scene("small", np.random.default_rng(0)))  # doctest: +SKIP
    """

    def __init__(self, which: str, size: int = 128, shadows: bool = True) -> None:
        """Build the room.

        Args:
            which: of the scenes to come, a key of `COUNTS`.
            size: H and W of the pictures.
            shadows: whether objects cast shadows; these take most of the time.

        Raises:
            ImportError: MuJoCo is not installed, or has nothing to draw with.
        """
        mujoco = self._mujoco = _import_mujoco()
        self.backend = _find_backend()
        most = COUNTS[which][1]
        xml = _MODEL.format(size=size, objects=_OBJECT * most)
        self._model = mujoco.MjModel.from_xml_string(xml)
        self._model.geom_sameframe[:] = 0  # else MuJoCo takes them to stay at the origin
        self._data, self._option = mujoco.MjData(self._model), mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:], self._camera.distance = (0, 0, 0.3), 6.9
        self._scene = mujoco.MjvScene(self._model, maxgeom=_BUILT + most)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._window = mujoco.MjrRect(0, 0, size, size)
        self._gl = importlib.import_module(self.backend).GLContext(size, size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def close(self) -> None:
        """Give the graphics memory back; nothing can be drawn afterwards."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()

    def draw(self, scene: Scene) -> Frame:
        """Return the (H, W, 3) uint8 RGB picture of a scene."""
        self._set_up(scene)
        return self._shoot()

    def draw_with_ids(self, scene: Scene) -> tuple[Frame, npt.NDArray[np.int64]]:
        """Return the picture, and (H, W) int64: 1..n where that object is seen, 0 elsewhere."""
        self._set_up(scene)
        frame = self._shoot()
        flags = self._mujoco.mjtRndFlag
        for flag in (flags.mjRND_SEGMENT, flags.mjRND_IDCOLOR):
            self._scene.flags[flag] = True
        code = self._shoot().astype(np.int64) @ (1, 2**8, 2**16)
        for flag in (flags.mjRND_SEGMENT, flags.mjRND_IDCOLOR):
            self._scene.flags[flag] = False
        meaning = np.zeros(self._scene.ngeom + 1, dtype=np.int64)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            meaning[geom.segid + 1] = max(0, geom.objid - _BUILT + 1)
        return frame, meaning[code]

    def _set_up(self, scene: Scene) -> None:
        mujoco, model, count = self._mujoco, self._model, len(scene.half)
        kinds = mujoco.mjtGeom
        kind = np.array([kinds.mjGEOM_BOX, kinds.mjGEOM_SPHERE, kinds.mjGEOM_CYLINDER], dtype=int)
        objects = slice(_BUILT, _BUILT + count)
        model.geom_type[objects] = kind[scene.shape]
        model.geom_size[objects] = scene.half[:, None]
        model.geom_pos[objects] = np.column_stack([scene.place, scene.half])
        model.geom_quat[objects] = 0
        model.geom_quat[objects, 0] = np.cos(scene.turn / 2)
        model.geom_quat[objects, 3] = np.sin(scene.turn / 2)
        walls, floor, sky = scene.room
        model.geom_rgba[:_BUILT, :3] = floor, walls, walls, walls, walls
        model.geom_rgba[objects, :3] = scene.colour
        model.geom_rgba[_BUILT:, 3] = np.arange(model.ngeom - _BUILT) < count  # 0 is not drawn
        model.tex_data.reshape(-1, 3)[:] = np.round(255 * sky)
        self._gl.make_current()  # somebody else may have drawn meanwhile
        mujoco.mjr_uploadTexture(model, self._context, 0)
        self._camera.azimuth, self._camera.elevation = scene.azimuth, scene.elevation
        mujoco.mj_kinematics(model, self._data)
        mujoco.mj_camlight(model, self._data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            model, self._data, self._option, None, self._camera, everything, self._scene
        )

    def _shoot(self) -> Frame:
        picture = np.empty((self._window.height, self._window.width, 3), dtype=np.uint8)
        self._mujoco.mjr_render(self._window, self._scene, self._context)
        self._mujoco.mjr_readPixels(picture, None, self._window, self._context)
        return np.ascontiguousarray(picture[::-1])  # OpenGL counts rows from below


_PROBE = "from mujoco.{} import GLContext; gl = GLContext(8, 8); gl.make_current(); gl.free()"


def _import_mujoco() -> Any:
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as problem:
        raise ImportError("MuJoCo is not installed: pip install 'objrl[rooms]'") from problem


@functools.cache
def _find_backend() -> str:
    """Return the module of MuJoCo that can draw to memory here.

    `mujoco.GLContext` would be what MUJOCO_GL said when MuJoCo was first imported, by default one
    that needs a screen. Each is tried in a process of its own: one that fails spoils its process
    for the next.

    Raises:
        ImportError: none can.
    """
    if sys.platform != "linux":
        return "mujoco"
    wish, reasons = os.environ.get("MUJOCO_GL", ""), []
    for name in (wish,) if wish in ("egl", "osmesa", "glfw") else ("egl", "osmesa"):
        done = subprocess.run(
            [sys.executable, "-c", _PROBE.format(name)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return f"mujoco.{name}"
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reasons.append(f"{name}: {said[-1]}")
    raise ImportError(
        f"MuJoCo has nothing to draw with ({'; '.join(reasons)}); expected EGL or OSMesa: on "
        "Debian and Ubuntu `apt-get install libegl1 libgl1` or `apt-get install libosmesa6`"
        + (f", and MUJOCO_GL not to be {wish!r}" if wish else "")
    )
