"""From measurements to features: sensor models and encoders."""

if __name__ != "gradpath.perception":
    raise ImportError(
        "import this area as gradpath.perception; a second copy would register every kernel twice"
    )

from gradpath.perception.encoders import DepthEncoder
from gradpath.perception.motion import MotionEstimate, heading, to_heading
from gradpath.perception.sensors import Blindfold, DepthSensor

__all__ = ["Blindfold", "DepthEncoder", "DepthSensor", "MotionEstimate", "heading", "to_heading"]
