"""Pictures and videos as files: what `gradpath view` writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

from gradpath.errors import InputError
from gradpath.figures import Figure


def write_frames(frames: np.ndarray, folder: Path, name: str, rate: float = 12.0) -> list[Path]:
    """Write pictures as a PNG of the first, a GIF and an MP4.

    Args:
        frames: RGB, shape (N, H, W, 3), uint8; an odd last row or column is left out of the MP4, which has none.
        folder: Where to; made if it is not there.
        name: Of the files, without suffix.
        rate: Pictures per second.
    Returns:
        The files.
    Raises:
        InputError: frames of another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) == 0:
        raise InputError(f"frames: expected uint8 of shape (N, H, W, 3), got {frames.dtype} {frames.shape}")
    folder.mkdir(parents=True, exist_ok=True)
    still, gif, video = (folder / f"{name}.{suffix}" for suffix in ("png", "gif", "mp4"))
    imageio.imwrite(still, frames[0])
    imageio.mimwrite(gif, list(frames), duration=1000.0 / rate, loop=0)
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    writer: Any = imageio.get_writer(video, fps=rate, codec="libx264", quality=8, macro_block_size=2)
    with writer as stream:
        for frame in even:
            stream.append_data(frame)
    return [still, gif, video]


def write_recording(
    vertices: np.ndarray, faces: np.ndarray, frames: np.ndarray, path: Path, rate: float = 12.0
) -> Path:
    """Write a recording for the Rerun viewer: the mesh in 3-D beside the pictures of it; `rerun PATH` shows it.

    Args:
        vertices: Positions [m], shape (V, 3), z up.
        faces: Vertex indices, shape (F, 3).
        frames: RGB, shape (N, H, W, 3), uint8.
        path: The file, with the suffix .rrd.
        rate: Pictures per second.
    Raises:
        InputError: rerun-sdk is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise InputError('a recording needs rerun-sdk; pip install "gradpath[viewer]"') from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with rerun.RecordingStream("gradpath view") as recording:
        recording.save(path)
        recording.log("model", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        recording.log(
            "model/mesh", rerun.Mesh3D(vertex_positions=vertices, triangle_indices=faces), static=True
        )
        for number, frame in enumerate(frames):
            recording.set_time("time", duration=number / rate)
            recording.log("pictures", rerun.Image(frame))
        recording.flush()
    return path


def write_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write the pictures and videos of a report as files, named by their titles; tables and HTML are left to it.

    Raises:
        InputError: none of the figures is a picture or a video.
    """
    written = []
    for figure in figures:
        for suffix, content in (("png", figure.png), ("mp4", figure.mp4), ("svg", figure.svg)):
            if content is not None:
                folder.mkdir(parents=True, exist_ok=True)
                name = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-") or "figure"
                path = folder / f"{name}.{suffix}"
                if isinstance(content, str):
                    path.write_text(content, encoding="utf-8")
                else:
                    path.write_bytes(content)
                written.append(path)
    if not written:
        raise InputError(
            "the run has no pictures yet; `gradpath evaluate` makes what the task draws of its evaluation"
        )
    return written
