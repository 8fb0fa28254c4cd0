"""What the stateful adaptive softmax has beyond the pure one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..losses import adaptive_softmax
from .module import Module

Array = jax.Array


class AdaptiveLogSoftmaxWithLoss(adaptive_softmax.AdaptiveLogSoftmaxWithLoss, Module):
    def log_prob(self, input: Array) -> Array:
        """The log-probabilities of all classes.

        Shape: input (N, in_features), output (N, n_classes).
        """
        return self.compute_log_prob(self, input)

    def predict(self, input: Array) -> Array:
        """The most likely class of each row.

        Shape: input (N, in_features), output (N).
        """
        return jnp.argmax(self.log_prob(input), 1)

    def reset_parameters(self) -> None:
        """Draw the parameters of head and tail anew."""
        for module in (self.head, *(linear for projection in self.tail for linear in projection)):
            module.reset_parameters()
