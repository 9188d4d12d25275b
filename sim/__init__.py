if __name__ != "gradpath.sim":
    raise ImportError("import this area as gradpath.sim; a second copy would register every kernel twice")

from gradpath.bodies import WORLD, Frame, MeshFile, Skin, Visual
from gradpath.sim import contact_ops_samples, samples  # noqa: F401  (register operations, so that the tests see them)
from gradpath.sim.articulation import Articulation, joint_forces, simulate, step
from gradpath.sim.bicycle import Bicycle
from gradpath.sim.builder import ModelBuilder
from gradpath.sim.clearance import Clearance
from gradpath.sim.contact import Contact, ContactPoints
from gradpath.sim.contact_step import contact_step
from gradpath.sim.differential_drive import DifferentialDrive
from gradpath.sim.dynamics import (
    forward_dynamics,
    forward_kinematics,
    inverse_dynamics,
    jacobian,
    mass_matrix,
)
from gradpath.sim.load import load
from gradpath.sim.model import Actuator, Joint, JointKind, Model
from gradpath.sim.quadrotor import Quadrotor, quadrotor_step
from gradpath.sim.quadrotor_functions import GRAVITY
from gradpath.sim.rays import RangeRays, RayCaster, ray_fan
from gradpath.sim.rigid_bodies import RigidBodies, solid_inertia
from gradpath.sim.sensors import ContactForces, Imu, JointEncoders
from gradpath.sim.shapes import ShapeKind, Shapes

__all__ = [
    "GRAVITY",
    "WORLD",
    "Actuator",
    "Articulation",
    "Bicycle",
    "Clearance",
    "Contact",
    "ContactForces",
    "ContactPoints",
    "DifferentialDrive",
    "Frame",
    "Imu",
    "Joint",
    "JointEncoders",
    "JointKind",
    "MeshFile",
    "Model",
    "ModelBuilder",
    "Quadrotor",
    "RangeRays",
    "RayCaster",
    "RigidBodies",
    "ShapeKind",
    "Shapes",
    "Skin",
    "Visual",
    "contact_step",
    "forward_dynamics",
    "forward_kinematics",
    "inverse_dynamics",
    "jacobian",
    "joint_forces",
    "load",
    "mass_matrix",
    "quadrotor_step",
    "ray_fan",
    "simulate",
    "solid_inertia",
    "step",
]
