if __name__ != "gradpath.sim":
    raise ImportError("import this area as gradpath.sim; a second copy would register every kernel twice")

from gradpath.sim.clearance import Clearance
from gradpath.sim.quadrotor import GRAVITY, Quadrotor, quadrotor_step

__all__ = ["GRAVITY", "Clearance", "Quadrotor", "quadrotor_step"]
