"""Lights, and how a surface reflects them: Lambert's diffuse and Phong's specular reflection."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradpath.errors import InputError, ShapeError

Colour = Tensor | Sequence[float]


@dataclass(frozen=True, eq=False)
class AmbientLight:
    """Light from everywhere; `colour` per channel, shape (3,) or (B, 3), differentiable."""

    colour: Colour = (0.4, 0.4, 0.4)


@dataclass(frozen=True, eq=False)
class DirectionalLight:
    """Light from far away; it travels along `direction`, shape (3,) or (B, 3), of any length but zero."""

    direction: Colour = (0.3, 0.4, -0.9)
    colour: Colour = (0.6, 0.6, 0.6)


@dataclass(frozen=True, eq=False)
class PointLight:
    """Light from a point [m], shape (3,) or (B, 3); with `falloff`, `colour` is that at 1 m, and it falls squared."""

    position: Colour = (0.0, 0.0, 3.0)
    colour: Colour = (1.0, 1.0, 1.0)
    falloff: bool = False


Light = AmbientLight | DirectionalLight | PointLight


def illuminate(
    position: Tensor,
    normal: Tensor,
    lights: Sequence[Light],
    eye: Tensor | None = None,
    shininess: float | Tensor = 32.0,
) -> tuple[Tensor, Tensor]:
    """Light that a surface sends on: what it scatters in all directions, and what it reflects towards the eye.

    Positions, normals, lights and the eye are in one frame, whichever. There are no shadows.

    Args:
        position: Points on surfaces [m], shape (B, ..., 3), differentiable.
        normal: Their normals, of any length, shape (B, ..., 3), differentiable; zero where there is no surface.
        lights: The lights; their tensors are differentiable.
        eye: Where the camera is, shape (B, 3); without it nothing is reflected.
        shininess: Exponent of the reflection.
    Returns:
        Diffuse light, to be multiplied by the surface's colour, and specular light, both (B, ..., 3); 0 where the
        normal is zero, but for the ambient light.
    Raises:
        InputError: a light of another class, or without direction.
        ShapeError: a vector of a light that is neither (3,) nor (B, 3).
    References: Phong 1975.
    """
    normal = torch.nn.functional.normalize(normal, dim=-1)
    diffuse, specular = torch.zeros_like(position), torch.zeros_like(position)
    for light in lights:
        if not isinstance(light, AmbientLight | DirectionalLight | PointLight):
            raise InputError(f"expected lights, got {type(light).__name__}; use AmbientLight and its kin")
        colour = _vector(light.colour, position, "colour")
        if isinstance(light, AmbientLight):
            diffuse = diffuse + colour
            continue
        toward, strength = _toward(light, position)
        cosine = (normal * toward).sum(-1, keepdim=True)
        lit = cosine.clamp(min=0.0) * strength
        diffuse = diffuse + lit * colour
        if eye is not None:
            view = torch.nn.functional.normalize(_vector(eye, position, "eye") - position, dim=-1)
            mirrored = 2.0 * cosine * normal - toward
            along = (mirrored * view).sum(-1, keepdim=True).clamp(min=0.0)
            # A power of zero has an infinite derivative for exponents below one.
            glint = torch.where((along > 0) & (cosine > 0), along.clamp(min=1e-12) ** shininess, 0.0)
            specular = specular + glint * strength * colour
    return diffuse, specular


def _toward(light: DirectionalLight | PointLight, position: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors to a light and its strength at each point."""
    if isinstance(light, DirectionalLight):
        direction = _vector(light.direction, position, "direction")
        if not bool((direction.detach() != 0).any(-1).all()):
            raise InputError("a directional light needs a direction, got zero; name the way that it travels")
        toward = torch.nn.functional.normalize(-direction, dim=-1)
        return toward, torch.ones_like(position[..., :1])
    away = _vector(light.position, position, "position") - position
    toward = torch.nn.functional.normalize(away, dim=-1)
    strength = torch.ones_like(away[..., :1])
    if light.falloff:
        strength = 1.0 / (away * away).sum(-1, keepdim=True).clamp(min=1e-6)
    return toward, strength


def _vector(value: Colour, like: Tensor, name: str) -> Tensor:
    """A vector (3,) or (B, 3) that broadcasts to points (B, ..., 3)."""
    tensor = (
        value.to(like)
        if isinstance(value, Tensor)
        else torch.tensor(tuple(value), dtype=like.dtype, device=like.device)
    )
    if tensor.shape == (3,):
        return tensor
    if tensor.shape == (like.shape[0], 3):
        return tensor.reshape(-1, *[1] * (like.ndim - 2), 3)
    raise ShapeError(f"light, {name}: expected shape (3,) or ({like.shape[0]}, 3), got {tuple(tensor.shape)}")
