"""Cameras as stages."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradpath.contract import Contract
from gradpath.errors import InputError
from gradpath.geometry import check_poses, pose_compose
from gradpath.mode import current_mode
from gradpath.render.culling import View
from gradpath.render.edge_image import SUPPORT
from gradpath.render.instances import place
from gradpath.render.rasterize import rasterize
from gradpath.render.scene import Scene
from gradpath.render.topology import Topology
from gradpath.stage import Stage

# Rotation from the camera (x right, y down, z forward) to a body (x forward, y left, z up).
LOOKING_AHEAD = (-0.5, 0.5, -0.5, 0.5)


def pinhole(width: int, height: int, field_of_view: float) -> Tensor:
    """Intrinsics of an ideal camera with square pixels and a centred axis.

    Args:
        width: Columns of the image.
        height: Rows of the image.
        field_of_view: Angle between the left and right borders [rad].
    Returns:
        K in pixels, shape (3, 3), float64.
    Raises:
        InputError: an angle outside of (0, pi), which no flat image has.
    """
    if not 0.0 < field_of_view < math.pi:
        raise InputError(f"a pinhole camera sees an angle between 0 and pi, got {field_of_view}")
    focal = 0.5 * width / math.tan(0.5 * field_of_view)
    return torch.tensor(
        [[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]], dtype=torch.float64
    )


class DepthCamera(Stage):
    """A pinhole depth camera on a moving body, over a scene whose instances have poses and scales per world.

    Args:
        scene: The meshes and their number of instances; without links of robots, which `Camera` draws.
        height: Rows of the image.
        width: Columns of the image.
        field_of_view: Horizontal angle of view [rad].
        mount: Pose of the camera in the body's frame (position [m], quaternion xyzw); looking along the body's x by
            default.
        near: Nearest depth drawn [m].
        far: Farthest depth drawn, and depth where nothing is [m].
        sigma: Width of soft edges [pixels].
        silhouette: The rule for soft edges, see `rasterize`.

    Inputs: `pose`, the body in the world, (B, 7); `obstacles`, `pose` (B, I, 7) and `scale` (B, I, 3) of the instances.
    Outputs: `depth` along the camera's axis [m] and `alpha`, (B, 1, H, W).
    Gradients: body pose, obstacle poses and scales exact for the soft image; the hard image has only that of its
        surfaces. `gp.mode` chooses.

    Raises:
        InputError: links in the scene; when called, a pose that is none, or a scale that is not positive; these are not
            looked for on a GPU.
        ShapeError: when called, another number of instances than the scene has.
    """

    vertices: Tensor
    owner: Tensor
    intrinsics: Tensor
    mount: Tensor

    def __init__(
        self,
        scene: Scene,
        height: int = 48,
        width: int = 64,
        field_of_view: float = math.pi / 2,
        mount: Sequence[float] = (0.0, 0.0, 0.0, *LOOKING_AHEAD),
        near: float = 0.05,
        far: float = 20.0,
        sigma: float = 1.0,
        silhouette: str = "edge",
    ):
        super().__init__()
        if scene.bodies:
            raise InputError(
                f"a DepthCamera draws meshes, and the scene has {len(scene.bodies)} links of a robot; use "
                'render.Camera(scene, ("depth", "alpha"))'
            )
        count = scene.placed
        self.contract = Contract(
            inputs={"pose": "B 7", "obstacles": {"pose": f"B {count} 7", "scale": f"B {count} 3"}},
            outputs={"depth": f"B 1 {height} {width}", "alpha": f"B 1 {height} {width}"},
            gradient="relaxed",
        )
        self.scene, self.height, self.width = scene, height, width
        self.near, self.far, self.sigma, self.silhouette = near, far, sigma, silhouette
        default = torch.get_default_dtype()
        self.register_buffer("vertices", scene.vertices.to(default), persistent=False)
        self.register_buffer("owner", scene.owner, persistent=False)
        self.register_buffer("intrinsics", pinhole(width, height, field_of_view).to(default))
        self.register_buffer("mount", torch.tensor(mount, dtype=default))
        self.topology = scene.topology

    def forward(self, pose: Tensor, obstacles: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Render one image per world."""
        check_poses(pose, "camera")
        poses, scales = self.scene.place(obstacles, None, "camera")
        camera = pose_compose(pose, self.mount.to(pose.dtype))
        vertices, owner, topology = self.vertices.to(pose.dtype), self.owner, self._topology(pose.device)
        if self.silhouette == "edge" or current_mode() == "hard":
            size, depths = (self.height, self.width), (self.near, self.far)
            view = View(camera, self.intrinsics, size, SUPPORT * self.sigma, depths)
            part = self.scene.seen_part(poses, scales, view)
            if part is not None:
                topology, vertices, owner = part.topology, vertices[part.vertices], owner[part.vertices]
        points = place(vertices, owner, poses, scales, camera)
        image = rasterize(
            points,
            topology,
            K=self.intrinsics,
            height=self.height,
            width=self.width,
            silhouette=self.silhouette,
            sigma=self.sigma,
            near=self.near,
            far=self.far,
            validate=points.device.type == "cpu",
        )
        return image["depth"].unsqueeze(1), image["alpha"].unsqueeze(1)

    def _topology(self, device: torch.device) -> Topology:
        if self.topology.faces.device != device:
            self.topology = self.topology.to(device)
        return self.topology
