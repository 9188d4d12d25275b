"""The systems of `bench_sim.py`: where their files are, how they are driven, and what is measured of them."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

MASS, INERTIA = 0.75, (0.0025, 0.0025, 0.0045)  # of the quadrotor [kg], [kg m^2]


@dataclass(frozen=True)
class System:
    """A robot and its commands.

    Attributes:
        name: What the benchmark calls it.
        file: Name of a file in gymnasium's assets, or that of one made by `panda`; empty for the quadrotor.
        dt: Duration of a step [s].
        mean: Of the commands.
        spread: Of the commands about their mean.
        steps: Of a motion that is timed, and where there are many worlds.
        contact: Whether it touches the ground.
    """

    name: str
    file: str
    dt: float
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    steps: tuple[int, int] = (1000, 100)
    contact: bool = False

    def controls(self, worlds: int, steps: int) -> np.ndarray:
        """Commands of each world and step, the same in every run; world 0 has the same for any number of worlds."""
        noise = np.random.default_rng(0).uniform(-1, 1, (worlds, steps, len(self.mean)))
        return np.asarray(self.mean) + np.asarray(self.spread) * noise


SYSTEMS = {
    system.name: system
    for system in (
        System("quadrotor", "", 0.01, (9.81 * MASS, 0.0, 0.0, 0.0), (1.0, 0.01, 0.01, 0.005)),
        System("cartpole", "inverted_pendulum.xml", 0.01, (0.0,), (0.2,)),
        System("double pendulum", "inverted_double_pendulum.xml", 0.01, (0.0,), (0.2,)),
        System("panda", "panda.xml", 0.002, (0.0,) * 7, (2.0,) * 7, (100, 20)),
        System("ant", "ant.xml", 0.01, (0.0,) * 8, (0.3,) * 8, (20, 20), contact=True),
    )
}


def path(system: System, folder: Path) -> Path:
    """The file of a system; `folder` holds what `panda` has made."""
    if system.file == "panda.xml":
        return folder / system.file
    package = importlib.util.find_spec("gymnasium")
    if package is None or package.origin is None:
        raise SystemExit("bench_sim needs the robots of gymnasium: pip install gymnasium")
    return Path(package.origin).parent / "envs" / "mujoco" / "assets" / system.file


def panda(folder: Path) -> None:
    """Write the arm of example-robot-data as MJCF, with a motor at each joint and without fingers and meshes.

    All engines read the same file. Joints have no limits, dampers or dry friction, which engines model differently.
    """
    import mujoco

    share = (
        Path(sys.prefix)
        / "lib"
        / f"python3.{sys.version_info.minor}"
        / "site-packages"
        / "cmeel.prefix"
        / "share"
    )
    robot = share / "example-robot-data" / "robots" / "panda_description" / "urdf" / "panda.urdf"
    root = ElementTree.parse(robot).getroot()
    for link in root.findall("link"):
        for element in [*link.findall("visual"), *link.findall("collision")]:
            link.remove(element)
    for joint in root.findall("joint"):
        if "finger" in joint.get("name", ""):
            joint.set("type", "fixed")
            for mimic in joint.findall("mimic"):
                joint.remove(mimic)
    spec = mujoco.MjSpec.from_string(ElementTree.tostring(root, encoding="unicode"))
    for joint in spec.joints:
        joint.limited, joint.actfrclimited = 0, 0
        joint.frictionloss, joint.armature = 0.0, 0.1
        joint.damping = 0.0 * np.asarray(joint.damping)  # one number, or three in newer versions
        spec.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    spec.compiler.discardvisual = 0
    spec.worldbody.add_geom(size=[0.01, 0, 0], contype=0, conaffinity=0)  # Brax wants one
    spec.compile()
    (folder / "panda.xml").write_text(spec.to_xml())
