"""Vehicles on a plane: what the stages of the bicycle and of the differential drive share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradpath import geometry
from gradpath.sim.vehicle import VehicleStage


class PlaneVehicle(VehicleStage):
    """State and command in, state after one step and pose in the plane z = 0 out; abstract."""

    def forward(
        self,
        state: Mapping[str, Tensor],
        control: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Advance by one step."""
        values = self.parameters_per_world(len(control)) if parameters is None else parameters
        after = self.vehicle.step(state, control, values, self.dt, self.substeps)
        yaw = after["yaw"]
        place = torch.cat([after["position"], torch.zeros_like(yaw).unsqueeze(-1)], -1)
        up = yaw.new_tensor([0.0, 0.0, 1.0])
        return {"state": after, "pose": geometry.pose(place, geometry.quat_from_axis_angle(up, yaw))}

    def simulate(
        self, state: Mapping[str, Tensor], controls: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the states after each of T steps under commands (B, T, 2): one launch, and one for the gradient.

        The same as T calls, with an axis T after that of the worlds.
        """
        values = self.parameters_per_world(len(controls)) if parameters is None else parameters
        return self.vehicle.simulate(state, controls, values, self.dt, self.substeps)

    def rest_state(
        self,
        batch: int,
        position: Sequence[float] | Tensor = (0.0, 0.0),
        yaw: float | Tensor = 0.0,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Return the state at rest, wheels straight.

        Args:
            batch: Number of worlds B.
            position: Position [m], shape (2,) or (B, 2).
            yaw: Heading about world z [rad], a number or shape (B,).
            dtype: Float dtype; that of the parameters by default.
        """
        own = getattr(self, next(iter(self.vehicle.parameters)))
        like = torch.zeros((), dtype=dtype or own.dtype, device=own.device)
        state = {name: like.new_zeros(batch, *value.shape) for name, value in self.vehicle.state.items()}
        state["position"] = torch.as_tensor(position).to(like).expand(batch, 2).clone()
        state["yaw"] = torch.as_tensor(yaw).to(like).expand(batch).clone()
        return state
