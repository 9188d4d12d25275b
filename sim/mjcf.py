"""Models from MJCF files; MuJoCo's own compiler reads them, with its defaults, includes and mesh inertias."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradpath import geometry
from gradpath.bodies import Skin
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.sim.builder import ModelBuilder
from gradpath.sim.shapes import ShapeKind

DEFAULT_RGBA = [0.5, 0.5, 0.5, 1.0]  # MuJoCo's, of a geom without a colour
SHOWN_GROUPS = (0, 1, 2)  # MuJoCo's viewers hide the others, where files put what collides
_KINDS = ("free", "ball", "slide", "hinge")  # in MuJoCo's order
_SHAPES = {
    "mjGEOM_PLANE": ShapeKind.PLANE,
    "mjGEOM_HFIELD": ShapeKind.HEIGHT_FIELD,
    "mjGEOM_SPHERE": ShapeKind.SPHERE,
    "mjGEOM_CAPSULE": ShapeKind.CAPSULE,
    "mjGEOM_CYLINDER": ShapeKind.CYLINDER,
    "mjGEOM_BOX": ShapeKind.BOX,
    "mjGEOM_MESH": ShapeKind.CONVEX,  # MuJoCo collides with the hull
}


def read_mjcf(path: Path, *, meshes: bool) -> ModelBuilder:
    """Return a builder with the robot of an MJCF file; see `gradpath.sim.load`."""
    try:
        import mujoco
    except ImportError as error:
        raise InputError(
            f"{path}: reading MJCF needs mujoco, which is not there; pip install 'gradpath[robots]'"
        ) from error
    try:
        compiled = mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:  # what the compiler says names file, element and line
        raise InputError(f"{path}: MuJoCo's compiler refuses this file: {error}") from error
    reader = _Reader(path, mujoco, compiled)
    reader.check()
    reader.add_bodies()
    if meshes:
        reader.add_geoms()
    reader.add_actuators()
    return reader.builder


class _Reader:
    """Turns a compiled MuJoCo model into bodies with one joint each: a body with several becomes a chain."""

    def __init__(self, path: Path, mujoco: Any, compiled: Any):
        self.path, self.mj, self.m = path, mujoco, compiled
        self.builder = ModelBuilder(path.stem, gravity=compiled.opt.gravity, source=str(path))
        self.last: dict[int, str | None] = {0: None}  # the body of ours that a body of MuJoCo's moves with

    def name(self, kind: str, index: int) -> str:
        """Name of an element, or what it is and its number."""
        found = self.mj.mj_id2name(self.m, getattr(self.mj.mjtObj, f"mjOBJ_{kind.upper()}"), index)
        return found or f"{kind}{index}"

    def check(self) -> None:
        """Refuse what would change the motion and is not there."""
        m = self.m
        fluid = m.opt.density != 0 or m.opt.viscosity != 0
        tendons = [
            i for i in range(m.ntendon)
            if np.any(m.tendon_stiffness[i]) or np.any(m.tendon_damping[i]) or m.tendon_frictionloss[i]
            or m.tendon_limited[i]
        ]  # fmt: skip
        refused = [
            (fluid, "option density or viscosity: a fluid", "set both to 0"),
            (m.neq > 0, "an equality constraint", "remove it, or model it as a joint"),
            (bool(tendons), "a tendon with a spring, damper, friction or limit", "put it on the joints"),
            (m.nflex > 0, "a flexible body", "remove it"),
            (bool(np.any(m.body_gravcomp)), "gravity compensation", "add it to the control"),
        ]
        # Newer versions of MuJoCo have these too.
        nonlinear = (
            "dof_dampingpoly",
            "jnt_stiffnesspoly",
            "actuator_damping",
            "actuator_armature",
            "actuator_delay",
        )
        refused += [
            (
                bool(np.any(getattr(m, name, 0.0))),
                name.replace("_", " "),
                "remove it, or write it as another joint",
            )
            for name in nonlinear
        ]
        for wrong, what, remedy in refused:
            if wrong:
                raise InputError(f"{self.path}: {what} is not supported; {remedy}")

    def add_bodies(self) -> None:
        """Add every body and joint, and the bodies without joints as frames of what they are fixed to."""
        m = self.m
        for body in range(1, m.nbody):
            name, parent = self.name("body", body), self.last[int(m.body_parentid[body])]
            count, first = int(m.body_jntnum[body]), int(m.body_jntadr[body])
            place = _pose(m.body_pos[body], m.body_quat[body])
            rotation = geometry.quat_to_matrix(_quat(m.body_iquat[body]))
            values = {
                "mass": float(m.body_mass[body]),
                "com": m.body_ipos[body],
                "inertia": rotation @ torch.diag(torch.tensor(m.body_inertia[body])) @ rotation.T,
            }
            if count == 0:
                self.builder.add_body(name, parent, placement=place, **values)
            for k in range(count):
                joint, last = first + k, k == count - 1
                link = name if last else f"{name}/{self.name('joint', joint)}"
                options = self._joint(joint) | (values if last else {})
                if options["joint"] == "free":
                    place = geometry.pose_identity(
                        dtype=torch.float64
                    )  # its coordinates are those of the world
                parent = self.builder.add_body(
                    link, parent, joint_name=self.name("joint", joint), placement=place, **options
                )
                place = geometry.pose_identity(dtype=torch.float64)
            above = self.last[int(m.body_parentid[body])]
            if (
                count > 1 and above is not None
            ):  # a chain of joints between bodies that do not touch each other
                self.builder.exclude(above, name)
            self.last[body] = name
        for site in range(m.nsite):
            place = _pose(m.site_pos[site], m.site_quat[site])
            self.builder.add_frame(self.name("site", site), self.last[int(m.site_bodyid[site])], place)
        for pair in range(m.nexclude):
            first, second = divmod(int(m.exclude_signature[pair]), 1 << 16)
            a, b = self.last[first], self.last[second]
            if a is not None and b is not None:
                self.builder.exclude(a, b)

    def _joint(self, joint: int) -> dict[str, Any]:
        m, name = self.m, self.name("joint", joint)
        kind, dof, q = _KINDS[m.jnt_type[joint]], int(m.jnt_dofadr[joint]), int(m.jnt_qposadr[joint])
        values: dict[str, Any] = {
            "joint": kind,
            "axis": m.jnt_axis[joint],
            "anchor": m.jnt_pos[joint] if kind in ("hinge", "ball") else np.zeros(3),
            "armature": float(m.dof_armature[dof]),
            "damping": float(np.ravel(m.dof_damping[dof])[0]),
            "dry_friction": float(m.dof_frictionloss[dof]),
        }
        stiffness, limited = float(np.ravel(m.jnt_stiffness[joint])[0]), bool(m.jnt_limited[joint])
        if kind in ("hinge", "slide"):
            reference = float(m.qpos0[q])
            values |= {
                "offset": -reference,
                "home": [reference],
                "stiffness": stiffness,
                "rest": float(m.qpos_spring[q]),
            }
            if limited:
                values |= {"lower": float(m.jnt_range[joint, 0]), "upper": float(m.jnt_range[joint, 1])}
            return values
        if stiffness or (limited and kind == "ball"):
            raise InputError(
                f"{self.path}: joint {name!r} is a {kind} joint with a spring or a limit; that is for hinges and "
                "slides, so write it as three hinges, or remove it"
            )
        home = m.qpos0[q : q + (7 if kind == "free" else 4)]
        return values | {"home": np.concatenate([home[:-4], _quat(home[-4:])])}

    def add_geoms(self) -> None:
        """Add what collides as shapes and everything as visuals."""
        m = self.m
        for geom in range(m.ngeom):
            body = self.last[int(m.geom_bodyid[geom])]
            place, name = _pose(m.geom_pos[geom], m.geom_quat[geom]), self.name("geom", geom)
            kind = self.mj.mjtGeom(m.geom_type[geom]).name
            size = m.geom_size[geom]
            mesh = self._mesh(int(m.geom_dataid[geom])) if kind == "mjGEOM_MESH" else None
            collides = bool(m.geom_contype[geom]) or bool(m.geom_conaffinity[geom])
            if collides:
                self._add_shape(geom, body, kind, place, name, mesh)
            drawn = mesh or _primitive(kind, size)
            if drawn is not None and int(m.geom_group[geom]) in SHOWN_GROUPS:
                colour, skin = self._look(geom, mesh is not None)
                self.builder.add_visual(
                    body,
                    drawn,
                    pose=place,
                    scale=_drawn_scale(kind, size),
                    colour=colour,
                    skin=skin,
                    name=name,
                )

    def _look(self, geom: int, is_mesh: bool) -> tuple[list[float], Skin | None]:
        """Colour of a geom, and the image on it where a mesh has coordinates for it; else the image's mean colour."""
        m, material = self.m, int(self.m.geom_matid[geom])
        own: list[float] = m.geom_rgba[geom].tolist()
        if material < 0:
            return own, None
        # A colour that is not MuJoCo's default goes before that of the material.
        colour: list[float] = m.mat_rgba[material].tolist() if own == DEFAULT_RGBA else own
        texture = int(m.mat_texid[material, int(self.mj.mjtTextureRole.mjTEXROLE_RGB)])
        if texture < 0:
            return colour, None
        at, rows = int(m.tex_adr[texture]), int(m.tex_height[texture])
        columns, channels = int(m.tex_width[texture]), int(m.tex_nchannel[texture])
        image = m.tex_data[at : at + rows * columns * channels].reshape(rows, columns, channels)
        image = np.ascontiguousarray(np.broadcast_to(image[..., :3], (rows, columns, 3)))
        mesh = int(m.geom_dataid[geom])
        flat = int(m.tex_type[texture]) == int(self.mj.mjtTexture.mjTEXTURE_2D)
        if not (flat and is_mesh and int(m.mesh_texcoordnum[mesh]) > 0):
            return (np.array(colour) * np.append(image.mean((0, 1)) / 255.0, 1.0)).tolist(), None
        at, count = int(m.mesh_texcoordadr[mesh]), int(m.mesh_texcoordnum[mesh])
        first, faces = int(m.mesh_faceadr[mesh]), int(m.mesh_facenum[mesh])
        uv = m.mesh_texcoord[at : at + count] * m.mat_texrepeat[material]
        uv[:, 1] = 1.0 - uv[:, 1]  # MuJoCo counts v from the first row of the image
        index = m.mesh_facetexcoord[first : first + faces]
        return colour, Skin(torch.tensor(image), torch.tensor(uv), torch.tensor(index, dtype=torch.int32))

    def _add_shape(
        self, geom: int, body: str | None, kind: str, place: Any, name: str, mesh: TriangleMesh | None
    ) -> None:
        m = self.m
        if kind not in _SHAPES:
            raise InputError(
                f"{self.path}: geom {name!r} is of type {kind.removeprefix('mjGEOM_').lower()}, which does not collide "
                "here; write it as a sphere, capsule, cylinder, box or mesh, or set contype and conaffinity to 0"
            )
        size, heights = np.ones(3) if mesh is not None else m.geom_size[geom], None
        if kind == "mjGEOM_HFIELD":
            field = int(m.geom_dataid[geom])
            rows, columns, at = int(m.hfield_nrow[field]), int(m.hfield_ncol[field]), int(m.hfield_adr[field])
            heights = torch.tensor(m.hfield_data[at : at + rows * columns]).reshape(rows, columns).double()
            size = m.hfield_size[field][:3]
        self.builder.add_shape(
            body, _SHAPES[kind], size, pose=place, friction=float(m.geom_friction[geom, 0]), mesh=mesh, heights=heights,
            group=int(m.geom_contype[geom]), mask=int(m.geom_conaffinity[geom]),
            margin=float(m.geom_margin[geom] - m.geom_gap[geom]), name=name,
        )  # fmt: skip

    def _mesh(self, mesh: int) -> TriangleMesh:
        m = self.m
        at, count = int(m.mesh_vertadr[mesh]), int(m.mesh_vertnum[mesh])
        first, faces = int(m.mesh_faceadr[mesh]), int(m.mesh_facenum[mesh])
        return TriangleMesh(
            torch.tensor(m.mesh_vert[at : at + count]), torch.tensor(m.mesh_face[first : first + faces])
        )

    def add_actuators(self) -> None:
        """Add motors, servos and other affine actuators on joints."""
        m, mj = self.m, self.mj
        for a in range(m.nu):
            name = self.name("actuator", a)
            joint = int(m.actuator_trnid[a, 0])
            kinds = [
                int(v[a])
                for v in (m.actuator_trntype, m.actuator_gaintype, m.actuator_biastype, m.actuator_dyntype)
            ]
            affine = kinds[2] == int(mj.mjtBias.mjBIAS_AFFINE)
            on_joint = kinds[0] in (int(mj.mjtTrn.mjTRN_JOINT), int(mj.mjtTrn.mjTRN_JOINTINPARENT))
            fixed_gain = kinds[1] == int(mj.mjtGain.mjGAIN_FIXED)
            no_bias = kinds[2] == int(mj.mjtBias.mjBIAS_NONE)
            stateless = kinds[3] == int(mj.mjtDyn.mjDYN_NONE)
            if not (on_joint and fixed_gain and (affine or no_bias) and stateless):
                raise InputError(
                    f"{self.path}: actuator {name!r} is no motor or servo on a joint, without a state of its own; "
                    "write it as <motor>, <position> or <velocity>, or remove it"
                )
            bias = [float(value) for value in m.actuator_biasprm[a, :3]] if affine else [0.0, 0.0, 0.0]
            gear = m.actuator_gear[a]
            freedoms = {"free": 6, "ball": 3}.get(_KINDS[m.jnt_type[joint]], 1)
            acting = np.flatnonzero(gear[:freedoms])
            if len(acting) != 1 or (freedoms > 1 and np.any(bias)):
                raise InputError(
                    f"{self.path}: actuator {name!r} acts on {len(acting)} freedoms of joint "
                    f"{self.name('joint', joint)!r}; write one motor for each freedom, with one gear that is not zero"
                )
            self.builder.add_actuator(
                self.name("joint", joint), name=name, freedom=int(acting[0]), gear=float(gear[acting[0]]),
                gain=float(m.actuator_gainprm[a, 0]), bias=bias,
                control_range=_range(m.actuator_ctrllimited[a], m.actuator_ctrlrange[a]),
                force_range=_range(m.actuator_forcelimited[a], m.actuator_forcerange[a]),
            )  # fmt: skip


def _range(limited: Any, values: np.ndarray) -> tuple[float, float]:
    return (float(values[0]), float(values[1])) if limited else (-math.inf, math.inf)


def _quat(wxyz: np.ndarray) -> torch.Tensor:
    return torch.tensor([wxyz[1], wxyz[2], wxyz[3], wxyz[0]], dtype=torch.float64)


def _pose(position: np.ndarray, wxyz: np.ndarray) -> torch.Tensor:
    return geometry.pose(torch.tensor(position, dtype=torch.float64), _quat(wxyz))


def _primitive(kind: str, size: np.ndarray) -> TriangleMesh | None:
    if kind == "mjGEOM_CAPSULE":
        return TriangleMesh.capsule(float(size[0]), float(size[1]))
    made = {
        "mjGEOM_SPHERE": TriangleMesh.icosphere,
        "mjGEOM_ELLIPSOID": TriangleMesh.icosphere,
        "mjGEOM_BOX": TriangleMesh.box,
        "mjGEOM_CYLINDER": TriangleMesh.cylinder,
    }.get(kind)
    return None if made is None else made()


def _drawn_scale(kind: str, size: np.ndarray) -> np.ndarray:
    if kind == "mjGEOM_SPHERE":
        return np.full(3, size[0])
    if kind == "mjGEOM_CYLINDER":
        return np.array([size[0], size[0], size[1]])
    return np.array(size) if kind in ("mjGEOM_BOX", "mjGEOM_ELLIPSOID") else np.ones(3)
