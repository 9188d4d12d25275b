"""From measurements to features: sensor models and encoders."""

if __name__ != "gradpath.perception":
    raise ImportError(
        "import this area as gradpath.perception; a second copy would register every kernel twice"
    )

from gradpath.perception.backbones import (
    ConvEncoder,
    Memory,
    ResNetEncoder,
    VisionTransformer,
    load_weights,
)
from gradpath.perception.carving import carve, free_space
from gradpath.perception.clouds import point_cloud, project, unproject
from gradpath.perception.encoders import DepthEncoder
from gradpath.perception.filters import kalman_predict, kalman_update, particle_mean, particle_step
from gradpath.perception.heads import (
    CollisionDistance,
    GaussianMixture,
    GoalDirection,
    coverage,
    gaussian_nll,
    mixture_nll,
)
from gradpath.perception.keypoints import spatial_soft_argmax
from gradpath.perception.mapping import distance_field, occupancy
from gradpath.perception.motion import MotionEstimate, heading, to_heading
from gradpath.perception.pnp import pnp
from gradpath.perception.randomize import DomainRandomization
from gradpath.perception.render_pose import render_and_compare
from gradpath.perception.rgb import RgbSensor
from gradpath.perception.sensors import Blindfold, DepthSensor
from gradpath.perception.stereo import StereoDepth

__all__ = [
    "Blindfold",
    "CollisionDistance",
    "ConvEncoder",
    "DepthEncoder",
    "DepthSensor",
    "DomainRandomization",
    "GaussianMixture",
    "GoalDirection",
    "Memory",
    "MotionEstimate",
    "ResNetEncoder",
    "RgbSensor",
    "StereoDepth",
    "VisionTransformer",
    "carve",
    "coverage",
    "distance_field",
    "free_space",
    "gaussian_nll",
    "heading",
    "kalman_predict",
    "kalman_update",
    "load_weights",
    "mixture_nll",
    "occupancy",
    "particle_mean",
    "particle_step",
    "pnp",
    "point_cloud",
    "project",
    "render_and_compare",
    "spatial_soft_argmax",
    "to_heading",
    "unproject",
]
