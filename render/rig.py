"""A camera stage with channels, lenses, light, and any number of cameras on one body or in one hand."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradpath.bodies import Frame
from gradpath.contract import Contract
from gradpath.errors import InputError, ShapeError
from gradpath.geometry import check_poses, pose_apply, pose_compose
from gradpath.mode import current_mode, mode
from gradpath.render.attributes import Attribute
from gradpath.render.camera import LOOKING_AHEAD, pinhole
from gradpath.render.culling import Part, View
from gradpath.render.edge_image import SUPPORT
from gradpath.render.instances import place
from gradpath.render.lenses import Lens
from gradpath.render.lights import AmbientLight, DirectionalLight, Light
from gradpath.render.pieces import Fragments
from gradpath.render.rasterize import facing_normals, fragments
from gradpath.render.scene import Scene, body_poses
from gradpath.render.shading import Look, picture
from gradpath.stage import Stage

DAYLIGHT = (AmbientLight((0.45, 0.45, 0.5)), DirectionalLight((0.3, 0.5, -0.8), (0.55, 0.55, 0.5)))


class Camera(Stage):
    """Cameras on a moving body, over a scene whose instances have poses and scales per world; draws what is asked for.

    Args:
        scene: The meshes and their number of instances, and the links of robots.
        channels: Any of "rgb", "alpha", "depth", "normal" (camera frame), "position" (world), "instance" and "class"
            (the probability of each instance, or of each mesh of the scene and of all links).
        height: Rows of the images.
        width: Columns of the images.
        field_of_view: Horizontal angle of view [rad]; not used where `K` is given.
        K: Intrinsics in pixels, (3, 3), of all cameras; for an `Orthographic` lens in pixels per metre.
        mounts: Poses of the cameras in the body's frame (position [m], quaternion xyzw), shape (7,) for one, or (N, 7)
            for several; looking along the body's x by default.
        lens: `Distortion`, `Fisheye`, `Orthographic`; a pinhole by default.
        look: Colours and textures over the scene's vertices, see `Scene.look`, the default where there are links, and
            `Scene.paint`.
        lights: In the world frame; daylight by default.
        shading: "flat", "gouraud" or "phong".
        background: Colour of the background (3,), or an image (H, W, 3).
        near: Nearest depth drawn [m].
        far: Farthest depth drawn, and depth where nothing is [m].
        sigma: Width of soft edges [pixels].
        on: Frame of a robot that the cameras are mounted in, such as `model.frame("hand")`; the mounts are poses in it.

    Inputs, of which each camera has those that it needs:
        - `pose`: the body that carries the cameras in the world, (B, 7); not with `on`.
        - `obstacles`: `pose` (B, I, 7) and `scale` (B, I, 3) of the instances of the scene's meshes.
        - `bodies`: poses of all bodies of the robot in the world, (B, N, 7), with links in the scene or with `on`.
    Outputs: a channel each: (B, C, H, W) with one camera, (B, N, C, H, W) with several.
    Gradients: poses of the body, of obstacles and of links, scales, mounts, K, look and lights exact for the soft
        image. `gp.mode` chooses between soft, hard and straight-through images.

    Raises:
        InputError: an unknown channel, mounts that are no poses; when called, a pose that is none, or a scale that is
            not positive; not looked for on a GPU.
        ShapeError: when called, poses of another number of instances, or of too few bodies.
    """

    CHANNELS = ("rgb", "alpha", "depth", "normal", "position", "instance", "class")

    vertices: Tensor
    owner: Tensor
    intrinsics: Tensor
    mounts: Tensor

    def __init__(
        self,
        scene: Scene,
        channels: Sequence[str] = ("rgb", "depth"),
        height: int = 48,
        width: int = 64,
        field_of_view: float = math.pi / 2,
        K: Tensor | None = None,
        mounts: Tensor | Sequence[float] = (0.0, 0.0, 0.0, *LOOKING_AHEAD),
        lens: Lens | None = None,
        look: Look | None = None,
        lights: Sequence[Light] = DAYLIGHT,
        shading: str = "flat",
        background: Tensor | Sequence[float] = (0.75, 0.82, 0.9),
        near: float = 0.05,
        far: float = 20.0,
        sigma: float = 1.0,
        on: Frame | None = None,
    ):
        super().__init__()
        channels = (channels,) if isinstance(channels, str) else tuple(channels)
        if not channels or (unknown := [name for name in channels if name not in self.CHANNELS]):
            raise InputError(f"unknown channels {unknown or channels}; choose from {self.CHANNELS}")
        default = torch.get_default_dtype()
        mounts = torch.as_tensor(mounts, dtype=default)
        check_poses(mounts.reshape(-1, 7), "camera, mounts")
        self.scene, self.on = scene, on
        self.channels, self.height, self.width = channels, height, width
        self.look = scene.look() if look is None and scene.bodies else look
        self.lens, self.lights, self.shading = lens, tuple(lights), shading
        self.near, self.far, self.sigma = near, far, sigma
        self.background = torch.as_tensor(background, dtype=default)
        self.register_buffer("vertices", scene.vertices.to(default), persistent=False)
        self.register_buffer("owner", scene.owner, persistent=False)
        self.register_buffer("mounts", mounts)
        K = pinhole(width, height, field_of_view) if K is None else K
        self.register_buffer("intrinsics", K.to(default))
        self.topology = scene.topology
        self.labels = {
            "instance": Attribute.one_hot(scene.instance_of_face, scene.instances),
            "class": Attribute.one_hot(scene.kind[scene.instance_of_face.long()], int(scene.kind.max()) + 1),
        }
        several = "" if mounts.ndim == 1 else f"{len(mounts)} "
        sizes = {"rgb": 3, "alpha": 1, "depth": 1, "normal": 3, "position": 3}
        sizes |= {name: label.values.shape[-1] for name, label in self.labels.items()}
        placed = {"pose": f"B {scene.placed} 7", "scale": f"B {scene.placed} 3"}
        self.contract = Contract(
            inputs={
                **({"pose": "B 7"} if on is None else {}),
                **({"obstacles": placed} if scene.placed else {}),
                **({"bodies": "B N 7"} if scene.bodies or on is not None else {}),
            },
            outputs={name: f"B {several}{sizes[name]} {height} {width}" for name in channels},
            gradient="relaxed",
        )

    def constructed(self) -> None:
        """Require every input of the contract: which ones there are depends on the scene, their defaults are none."""
        super().constructed()
        self._optional = frozenset()

    def forward(
        self,
        pose: Tensor | None = None,
        obstacles: Mapping[str, Tensor] | None = None,
        bodies: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Render every camera of every world."""
        carrier = self._carrier(pose, bodies)
        worlds = len(carrier)
        cameras = pose_compose(carrier[:, None], self.mounts.to(carrier).reshape(1, -1, 7)).reshape(-1, 7)
        count = len(cameras) // worlds if worlds else 1
        poses, scales = (
            part.repeat_interleave(count, dim=0) for part in self.scene.place(obstacles, bodies, "camera")
        )
        if self.topology.faces.device != poses.device:
            self.topology = self.topology.to(poses.device)
        vertices, owner, topology, seen = self.vertices.to(carrier), self.owner, self.topology, None
        if self.lens is None and self.intrinsics.ndim == 2:
            size, depths = (self.height, self.width), (self.near, self.far)
            view = View(cameras, self.intrinsics, size, SUPPORT * self.sigma, depths)
            seen = self.scene.seen_part(poses, scales, view)
        if seen is not None:
            topology, vertices, owner = seen.topology, vertices[seen.vertices], owner[seen.vertices]
        points = place(vertices, owner, poses, scales, cameras)
        kind = current_mode()
        with mode("soft" if kind == "straight_through" else kind):
            pieces = fragments(
                points,
                topology,
                K=self.intrinsics,
                height=self.height,
                width=self.width,
                sigma=self.sigma,
                lens=self.lens,
                near=self.near,
                far=self.far,
                validate=points.device.type == "cpu",
            )
        images = self._draw(pieces, cameras, seen)
        if kind == "straight_through":
            hard = self._draw(pieces.hard(), cameras, seen)
            images = {name: image + (hard[name] - image).detach() for name, image in images.items()}
        shape = (worlds,) if self.mounts.ndim == 1 else (worlds, count)
        return {name: image.movedim(-1, 1).unflatten(0, shape) for name, image in images.items()}

    def _carrier(self, pose: Tensor | None, bodies: Tensor | None) -> Tensor:
        """Pose in the world of what the cameras are mounted on, (B, 7)."""
        if self.on is None:
            if pose is None:
                raise ShapeError(
                    "camera: pose: expected shape (B, 7), got none; say where the camera's body is"
                )
            check_poses(pose, "camera")
            return pose
        body = body_poses(bodies, [self.on.body], "camera")[:, 0]
        return pose_compose(body, self.on.pose.to(body))

    def _draw(self, pieces: Fragments, cameras: Tensor, seen: Part | None) -> dict[str, Tensor]:
        """The channels of all cameras, each (B N, H, W, C), of the part of the scene that is seen."""
        look = self.look if seen is None else seen.look(self.look)
        world = pose_apply(cameras[:, None], pieces.points)
        images: dict[str, Tensor] = {}
        if "alpha" in self.channels or "depth" in self.channels:
            alpha, depth = pieces.alpha_depth()
            images |= {"alpha": alpha[..., None], "depth": depth[..., None]}
        for name in self.channels:
            if name in self.labels:
                label = self.labels[name]
                images[name] = pieces.draw(label if seen is None else seen.attribute(label))
            elif name == "normal":
                images[name] = pieces.draw(Attribute.per_face(facing_normals(pieces)))
            elif name == "position":
                images[name] = pieces.draw(world)
            elif name == "rgb":
                images[name] = picture(
                    pieces,
                    world,
                    look,
                    self.lights,
                    eye=cameras[:, :3],
                    shading=self.shading,
                    background=self.background.to(world),
                )
        return {name: images[name] for name in self.channels}
