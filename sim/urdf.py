"""Models from URDF files; yourdfpy reads the XML."""

import math
import os
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradpath import geometry
from gradpath.bodies import MeshFile, Skin
from gradpath.errors import InputError
from gradpath.meshes import TriangleMesh
from gradpath.sim.builder import ModelBuilder
from gradpath.sim.shapes import ShapeKind

_KINDS = {
    "fixed": "fixed",
    "revolute": "hinge",
    "continuous": "hinge",
    "prismatic": "slide",
    "floating": "free",
}
GREY = (0.7, 0.7, 0.7, 1.0)  # of a primitive whose file gives it no colour


def read_urdf(
    path: Path,
    *,
    floating: bool,
    mimic: bool,
    meshes: bool,
    packages: Mapping[str, str | Path],
    locked: Mapping[str, float],
) -> ModelBuilder:
    """Return a builder with the robot of a URDF file; see `gradpath.sim.load`."""
    try:
        import yourdfpy
    except ImportError as error:
        raise InputError(
            f"{path}: reading URDF needs yourdfpy, which is not there; pip install 'gradpath[robots]'"
        ) from error
    try:
        ElementTree.parse(path)  # yourdfpy guesses on where a file is broken
        robot = yourdfpy.URDF.load(str(path), load_meshes=False, build_scene_graph=False).robot
    except Exception as error:  # yourdfpy and lxml raise whatever they meet
        raise InputError(f"{path}: this is no URDF that yourdfpy can read: {error}") from error
    reader = _Reader(path, robot, mimic, meshes, packages)
    reader.lock(locked)
    reader.read(floating)
    return reader.builder


class _Reader:
    """Walks a robot from its root link, children in the order of their joint names, as Pinocchio does."""

    def __init__(self, path: Path, robot: Any, mimic: bool, meshes: bool, packages: Mapping[str, str | Path]):
        self.path, self.robot, self.mimic, self.meshes = path, robot, mimic, meshes
        self.files = _FileFinder(path, packages)
        self.builder = ModelBuilder(robot.name or path.stem, source=str(path))
        self.links = {link.name: link for link in robot.links}
        self.materials = {m.name: m for m in robot.materials if m.name is not None}
        self.locked: dict[str, float] = {}

    def lock(self, joints: Mapping[str, float]) -> None:
        """Let joints stand still, and those that follow them."""
        known = {joint.name: joint for joint in self.robot.joints}
        for name, value in joints.items():
            if name not in known or known[name].type not in ("revolute", "continuous", "prismatic"):
                raise InputError(
                    f"{self.path}: there is no hinge or slide {name!r} to lock; the joints are {', '.join(known)}"
                )
            if not math.isfinite(value):
                raise InputError(
                    f"{self.path}: joint {name!r} cannot be locked at {value}; give a finite place"
                )
        self.locked = dict(joints)
        for joint in self.robot.joints:
            if self.mimic and joint.mimic is not None and joint.mimic.joint in joints:
                ratio = 1.0 if joint.mimic.multiplier is None else joint.mimic.multiplier
                self.locked.setdefault(
                    joint.name, ratio * joints[joint.mimic.joint] + (joint.mimic.offset or 0.0)
                )

    def read(self, floating: bool) -> None:
        root, children = self._tree()
        joint = "free" if floating else "fixed"
        self._add_link(root, None, "root_joint", joint=joint)
        stack = list(reversed(children[root]))
        while stack:
            joint = stack.pop()
            self._add_joint(joint)
            stack += reversed(children[joint.child])

    def _tree(self) -> tuple[str, dict[str, list[Any]]]:
        """Return the root link and the joints below each link; refuse what is no tree."""
        parents: dict[str, Any] = {}
        children: dict[str, list[Any]] = {name: [] for name in self.links}
        names = set()
        for joint in sorted(self.robot.joints, key=lambda joint: joint.name):
            if joint.name in names:
                raise InputError(f"{self.path}: there are two joints {joint.name!r}; rename one of them")
            names.add(joint.name)
            for link in (joint.parent, joint.child):
                if link not in self.links:
                    raise InputError(
                        f"{self.path}: joint {joint.name!r} names the link {link!r}, which is not there; add it or "
                        "correct the name"
                    )
            if joint.child in parents:
                raise InputError(
                    f"{self.path}: link {joint.child!r} hangs on two joints, {parents[joint.child].name!r} and "
                    f"{joint.name!r}; a robot is a tree, so cut the loop at one of them"
                )
            parents[joint.child] = joint
            children[joint.parent].append(joint)
        roots = [name for name in self.links if name not in parents]
        reached, stack = set(roots[:1]), list(roots[:1])
        while stack:
            below = [joint.child for joint in children[stack.pop()]]
            reached.update(below)
            stack += below
        if len(roots) == 1 and len(reached) == len(self.links):
            return roots[0], children
        loop = [name for name in self.links if name not in reached and name not in roots]
        if len(roots) <= 1:
            raise InputError(
                f"{self.path}: joint {parents[loop[0]].name!r} is part of a loop of links; a robot is a tree, so "
                "cut the loop at one joint"
            )
        raise InputError(
            f"{self.path}: links {roots[0]!r} and {roots[1]!r} both hang on no joint; join them, or make two files"
        )

    def _add_joint(self, joint: Any) -> None:
        if joint.type not in _KINDS:
            remedy = (
                "write it as two prismatic and one revolute joint"
                if joint.type == "planar"
                else f"the known ones are {', '.join(_KINDS)}"
            )
            raise InputError(f"{self.path}: joint {joint.name!r} is of type {joint.type!r}; {remedy}")
        kind, placement = _KINDS[joint.type], _pose(joint.origin)
        if kind in ("hinge", "slide") and not float(np.linalg.norm(joint.axis)) > 0:
            raise InputError(f"{self.path}: the axis of joint {joint.name!r} is zero; give it a direction")
        if joint.name in self.locked:
            placement = geometry.pose_compose(placement, _moved(kind, joint.axis, self.locked[joint.name]))
            kind = "fixed"
        options: dict[str, Any] = {"joint": kind}
        if kind in ("hinge", "slide"):
            options |= self._motion(joint)
        self._add_link(joint.child, joint.parent, joint.name, placement=placement, **options)
        if kind in ("hinge", "slide") and "mimics" not in options:
            effort = joint.limit.effort if joint.limit is not None else None
            self.builder.add_motor(
                joint.name, limit=effort or math.inf
            )  # zero is how files say that nobody knows

    def _motion(self, joint: Any) -> dict[str, Any]:
        """Axis, limits and friction of a hinge or slide, and what it follows."""
        values: dict[str, Any] = {"axis": joint.axis}
        if joint.mimic is not None and not self.mimic:
            warnings.warn(
                f"{self.path}: joint {joint.name!r} mimics {joint.mimic.joint!r} and moves by itself here; load with "
                "mimic=True to let it follow",
                stacklevel=2,
            )
        if joint.mimic is not None and self.mimic:
            ratio = 1.0 if joint.mimic.multiplier is None else joint.mimic.multiplier
            return values | {"mimics": joint.mimic.joint, "ratio": ratio, "offset": joint.mimic.offset or 0.0}
        if joint.dynamics is not None:
            values["damping"] = float(joint.dynamics.damping or 0.0)
            values["dry_friction"] = float(joint.dynamics.friction or 0.0)
        if joint.limit is not None and joint.type != "continuous":
            lower, upper = joint.limit.lower, joint.limit.upper
            values |= {
                "lower": -math.inf if lower is None else lower,
                "upper": math.inf if upper is None else upper,
            }
        return values

    def _add_link(self, name: str, parent: str | None, joint_name: str, **options: Any) -> None:
        link = self.links[name]
        values: dict[str, Any] = {}
        if link.inertial is not None:
            place = _pose(link.inertial.origin)
            about = np.zeros((3, 3)) if link.inertial.inertia is None else link.inertial.inertia
            rotation = geometry.quat_to_matrix(place[3:])
            values = {
                "mass": link.inertial.mass or 0.0,
                "com": place[:3],
                "inertia": rotation @ torch.as_tensor(about) @ rotation.T,
            }
        self.builder.add_body(name, parent, joint_name=joint_name, **values, **options)
        if not self.meshes:
            return
        for item in link.collisions:
            self._add_collision(name, item)
        for item in link.visuals:
            self._add_visual(name, item)

    def _add_collision(self, link: str, item: Any) -> None:
        shape, label = item.geometry, item.name or ""
        kind, size, mesh = ShapeKind.MESH, np.ones(3), None
        if shape.box is not None:
            kind, size = ShapeKind.BOX, np.asarray(shape.box.size) / 2
        elif shape.sphere is not None:
            kind, size = ShapeKind.SPHERE, np.array([shape.sphere.radius])
        elif shape.cylinder is not None:
            kind, size = ShapeKind.CYLINDER, np.array([shape.cylinder.radius, shape.cylinder.length / 2])
        elif shape.mesh is not None:
            mesh, size = self.files.mesh(shape.mesh.filename, link), _scale(shape.mesh.scale)
        else:
            return
        self.builder.add_shape(link, kind, size, pose=_pose(item.origin), mesh=mesh, name=label)

    def _add_visual(self, link: str, item: Any) -> None:
        shape = item.geometry
        mesh: TriangleMesh | MeshFile
        colour, skin = self._material(link, item.material)
        if shape.box is not None:
            mesh, scale = TriangleMesh.box(), np.asarray(shape.box.size) / 2
        elif shape.sphere is not None:
            mesh, scale = TriangleMesh.icosphere(), np.full(3, shape.sphere.radius)
        elif shape.cylinder is not None:
            radius, half = shape.cylinder.radius, shape.cylinder.length / 2
            mesh, scale = TriangleMesh.cylinder(), np.array([radius, radius, half])
        elif shape.mesh is not None:
            mesh, scale = self.files.mesh(shape.mesh.filename, link), _scale(shape.mesh.scale)
        else:
            return
        if isinstance(mesh, TriangleMesh):  # has no colours of its own, nor coordinates for an image
            colour, skin = GREY if colour is None else colour, None
        self.builder.add_visual(
            link, mesh, pose=_pose(item.origin), scale=scale, colour=colour, skin=skin, name=item.name or ""
        )

    def _material(self, link: str, material: Any) -> tuple[Any, Skin | None]:
        """Colour and image of a material, or of its namesake at the top of the file; None where neither says."""
        for known in () if material is None else (material, self.materials.get(material.name)):
            if known is None or (known.color is None and known.texture is None):
                continue
            image = known.texture and known.texture.filename
            skin = Skin(self.files.find(image, link, "texture")) if image else None
            return (1.0, 1.0, 1.0, 1.0) if known.color is None else known.color.rgba, skin
        return None, None


class _FileFinder:
    """Finds the files that a URDF names, once each; a folder above the URDF may be the package it names."""

    def __init__(self, path: Path, packages: Mapping[str, str | Path]):
        self.path, self.packages = path, packages
        self.meshes: dict[str, MeshFile] = {}

    def mesh(self, name: str, link: str) -> MeshFile:
        if name not in self.meshes:
            self.meshes[name] = MeshFile(self.find(name, link, "mesh"))
        return self.meshes[name]

    def find(self, name: str, link: str, what: str) -> Path:
        candidates = self._candidates(name)
        existing = next((place for place in candidates if place.is_file()), None)
        if existing is None:
            raise InputError(
                f"{self.path}: link {link!r} names the {what} {name!r}, which is in none of "
                f"{', '.join(str(place) for place in candidates[:4])}; pass packages={{name: folder}}, or "
                "meshes=False to load without shapes and visuals"
            )
        return existing

    def _candidates(self, name: str) -> list[Path]:
        scheme, _, rest = name.rpartition("://")
        if scheme not in ("package", "model"):
            return [self.path.parent / rest]  # an absolute path stays one
        package, _, inside = rest.partition("/")
        places = [Path(self.packages[package]) / inside] if package in self.packages else []
        for folder in self.path.parents:
            places += [folder / inside] if folder.name == package else []
            places.append(folder / package / inside)
        for variable in ("ROS_PACKAGE_PATH", "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH"):
            for root in filter(None, os.environ.get(variable, "").split(os.pathsep)):
                places += [Path(root) / package / inside, Path(root) / "share" / package / inside]
        return places


def _moved(kind: str, axis: Any, value: float) -> Tensor:
    """Pose of a link in the frame of its joint, a hinge or slide at a place."""
    along = torch.as_tensor(np.asarray(axis, dtype=np.float64))
    along = along / along.norm()
    unit = geometry.pose_identity(dtype=torch.float64)
    if kind == "slide":
        return geometry.pose(value * along, unit[3:])
    return geometry.pose(
        unit[:3], geometry.quat_from_axis_angle(along, torch.tensor(value, dtype=torch.float64))
    )


def _scale(scale: Any) -> np.ndarray:
    return np.ones(3) if scale is None else np.broadcast_to(np.asarray(scale, dtype=np.float64), (3,))


def _pose(matrix: np.ndarray | None) -> Tensor:
    if matrix is None:
        return geometry.pose_identity(dtype=torch.float64)
    transform = torch.as_tensor(np.asarray(matrix, dtype=np.float64))
    return geometry.pose(transform[:3, 3], geometry.quat_from_matrix(transform[:3, :3]))
