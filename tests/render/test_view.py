"""`gradpath view`: pictures of a mesh file from all sides, and of a run what its task draws."""

import sys

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh

from gradpath import cli
from gradpath.errors import InputError
from gradpath.figures import Figure
from gradpath.meshes import TriangleMesh
from gradpath.render import Look, Model
from gradpath.render.turntable import BACKGROUND, turntable
from gradpath.viewing import write_figures, write_frames, write_recording


def test_a_mesh_file_becomes_a_picture_a_gif_and_a_video(tmp_path, capsys):
    trimesh.creation.box((1.0, 2.0, 0.5)).export(tmp_path / "brick.obj")
    assert (
        cli.main(["view", str(tmp_path / "brick.obj"), "--frames", "4", "--height", "61", "--width", "80"])
        == 0
    )
    still, gif, video = capsys.readouterr().out.split()
    assert still == str(tmp_path / "view" / "brick.png")
    assert imageio.imread(still).shape == (61, 80, 3)
    assert len(imageio.mimread(gif)) == 4
    frames = imageio.mimread(video)
    assert len(frames) == 4 and frames[0].shape[:2] == (60, 80)
    assert np.abs(frames[0].astype(int) - frames[1].astype(int)).max() > 30  # it turns


def test_the_model_fills_the_picture_from_every_side():
    mesh = TriangleMesh.box()
    long = TriangleMesh(
        mesh.vertices * torch.tensor([3.0, 0.2, 0.2]) + torch.tensor([5.0, 5.0, 5.0]), mesh.faces
    )
    colour = torch.tensor([0.8, 0.1, 0.1]).expand(8, 3)
    frames = turntable(Model(long, Look(colour)), frames=6, height=60, width=80).float() / 255
    seen = (frames - torch.tensor(BACKGROUND)).abs().amax(-1) > 0.05
    assert bool((seen.sum((1, 2)) > 40).all()) and int(seen.any(1).sum(-1).max()) > 40
    border = torch.cat([seen[:, 0], seen[:, -1], seen[:, :, 0], seen[:, :, -1]], 1)
    assert not bool(border.any())
    assert bool((frames[seen][:, 0] > frames[seen][:, 1]).all())


def test_figures_of_a_run_become_files(tmp_path):
    figures = [
        Figure("Flights, from above", svg="<svg/>"),
        Figure("A flight", mp4=b"video"),
        Figure("Numbers", html="<p>1</p>"),
    ]
    paths = write_figures(figures, tmp_path / "view")
    assert [path.name for path in paths] == ["flights-from-above.svg", "a-flight.mp4"]
    assert paths[0].read_text() == "<svg/>" and paths[1].read_bytes() == b"video"
    with pytest.raises(InputError, match="has no pictures yet"):
        write_figures(figures[2:], tmp_path)


def test_a_recording_for_the_viewer(tmp_path, capsys):
    pytest.importorskip("rerun", reason='needs the extra "viewer"')
    trimesh.creation.box().export(tmp_path / "box.obj")
    small = ["--frames", "2", "--height", "24", "--width", "32"]
    assert cli.main(["view", str(tmp_path / "box.obj"), "--rerun", *small]) == 0
    recording = capsys.readouterr().out.split()[-1]
    with open(recording, "rb") as file:
        content = file.read()
    assert content[:3] == b"RRF" and b"model/mesh" in content and b"pictures" in content


def test_without_the_viewer_a_recording_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(InputError, match=r"gradpath\[viewer\]"):
        write_recording(
            np.zeros((3, 3)), np.zeros((1, 3)), np.zeros((1, 4, 4, 3), np.uint8), tmp_path / "a.rrd"
        )


def test_bad_files_and_frames_are_refused(tmp_path, capsys):
    assert cli.main(["view", str(tmp_path / "none.obj")]) == 1
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"expected uint8 of shape \(N, H, W, 3\)"):
        write_frames(np.zeros((2, 4, 4, 3)), tmp_path, "a")
    with pytest.raises(InputError, match="needs frames"):
        turntable(Model(TriangleMesh.box(), Look()), frames=0)
