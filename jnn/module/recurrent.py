"""What the stateful recurrent layers have beyond the pure ones."""

from __future__ import annotations

from ..layers import recurrent, recurrent_cells
from .module import Module
from .parameter import Parameter


class RNNBase(recurrent.RNNBase, Module):
    def flatten_parameters(self) -> None:
        """Does nothing: XLA lays out memory itself."""

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters, a list for each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self.weight_names()]


class RNNCellBase(recurrent_cells.RNNCellBase, Module): ...
