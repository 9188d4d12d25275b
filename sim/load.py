"""Robots from files."""

from collections.abc import Mapping
from pathlib import Path

from gradpath.errors import InputError
from gradpath.sim.mjcf import read_mjcf
from gradpath.sim.model import Model
from gradpath.sim.urdf import read_urdf


def load(
    path: str | Path,
    *,
    floating: bool = False,
    mimic: bool = False,
    merge_fixed: bool = True,
    meshes: bool = True,
    packages: Mapping[str, str | Path] | None = None,
    locked: Mapping[str, float] | None = None,
) -> Model:
    """Read a robot from a URDF file (`.urdf`) or an MJCF file (`.xml`).

    Joints are in depth-first order, children by joint name for URDF and in file order for MJCF. Each actuator of an
    MJCF file is one number of the control; a URDF file has none, so every hinge and slide gets a motor that is limited
    to the effort of the joint.

    Args:
        path: The file.
        floating: Give the root link of a URDF file a free joint, `root_joint`.
        mimic: Let joints of a URDF file follow those they mimic. Otherwise they move by themselves, as Pinocchio, whose
            default this is, has them, and a warning names them.
        merge_fixed: See `ModelBuilder.build`.
        meshes: Read collision shapes and visuals, and so ask for their mesh files; a mesh is read when it is used.
        packages: Folder of each package that `package://` paths of a URDF file name. Those above the file, and those
            in `ROS_PACKAGE_PATH` and `AMENT_PREFIX_PATH`, are found without.
        locked: Hinges and slides of a URDF file that do not move, and where they stand [rad or m]; with `mimic=True`
            those that follow them stand still too.
    Raises:
        InputError: names the file, the element and the remedy: a file that is missing or no robot, a mesh that is
            missing, links in a loop, a joint that is not supported or cannot be locked, a body without inertia.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: there is no such file; check the path and the working directory")
    suffix = file.suffix.lower()
    if suffix == ".urdf":
        builder = read_urdf(
            file, floating=floating, mimic=mimic, meshes=meshes, packages=packages or {}, locked=locked or {}
        )
        return builder.build(merge_fixed=merge_fixed)
    if locked:
        raise InputError(f"{path}: joints are locked in URDF files only; remove them from the MJCF file")
    if suffix in (".xml", ".mjcf"):
        return read_mjcf(file, meshes=meshes).build(merge_fixed=merge_fixed)
    raise InputError(f"{path}: robots are read from .urdf and .xml (MJCF) files, not from {suffix!r}")
