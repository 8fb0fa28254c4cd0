"""A softmax over very many classes, of which few are frequent."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, rng, tree
from ..core.spec import Layer, layer
from ..core.view import Run, View
from ..kernels.gather import pick
from ..layers.container import ModuleList, Sequential
from ..layers.linear import Linear
from ..layers.softmax import log_softmax

Array = jax.Array


class _ASMoutput(NamedTuple):
    """The log-probability of each target, and the loss, their mean negated."""

    output: Array
    loss: Array


@layer
class AdaptiveLogSoftmaxWithLoss(Layer):
    """The negative log-likelihood under a softmax in two stages: frequent classes and clusters first, then within the cluster.

    Class c below ``cutoffs[0]`` has ``log softmax(head(x))_c``. Class c of cluster i, which is [cutoffs[i], cutoffs[i + 1]),
    has ``log softmax(head(x))_(cutoffs[0] + i) + log softmax(tail[i](x))_(c - cutoffs[i])``. Classes must be sorted, the most
    frequent first.

    Shape: input_ (N, in_features) and target_ (N), or (in_features) and (); the result is a named tuple of ``output``, the shape
        of target_, the log-probability of each target, and ``loss``, ().

    Args:
        in_features: size of each input sample.
        n_classes: number of classes.
        cutoffs: where the clusters begin, increasing, each in [1, n_classes - 1].
        div_value: the projection of cluster i (from 0) has ``in_features // div_value^(i + 1)`` features.
        head_bias: whether the head has a bias.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.

    State: ``head``, a Linear to ``cutoffs[0]`` classes and one output for each cluster, and ``tail.i``, two Linears without bias.

    Raises:
        ValueError: cutoffs are not as above.
        RuntimeError: shapes are others, or a known target is outside [0, n_classes). A traced one gives NaN.

    Differs from torch: every cluster is computed for every row, so that shapes do not depend on values.

    Reference: Grave et al., "Efficient softmax approximation for GPUs", 2016.
    """

    in_features: int
    n_classes: int
    cutoffs: Any
    div_value: float = 4.0
    head_bias: bool = False
    device: Any = None
    dtype: Any = None

    def validate(self) -> None:
        cutoffs = tuple(self.cutoffs)
        bounds = (0, *cutoffs, self.n_classes)
        ok = cutoffs and all(a < b for a, b in itertools.pairwise(bounds)) and all(int(c) == c for c in cutoffs)
        rule = "cutoffs must be increasing integers in [1, n_classes - 1], at least one"
        checks.require(ok, self, rule, cutoffs=self.cutoffs, n_classes=self.n_classes)
        first, clusters = int(cutoffs[0]), len(cutoffs)
        self._set(cutoffs=tuple(map(int, bounds[1:])), shortlist_size=first, n_clusters=clusters, head_size=first + clusters)

    def parts(self) -> Mapping[str, Layer]:
        n, place = self.in_features, {"device": self.device, "dtype": self.dtype}
        tail = []
        for i, (low, high) in enumerate(itertools.pairwise(self.cutoffs)):
            hidden = int(n // self.div_value ** (i + 1))
            tail.append(Sequential(Linear(n, hidden, bias=False, **place), Linear(hidden, high - low, bias=False, **place)))
        head = Linear(n, self.cutoffs[0] + len(tail), bias=self.head_bias, **place)
        return {"head": head, "tail": ModuleList(tail)}

    def compute(self, s: Any, input_: Array, target_: Array) -> _ASMoutput:
        self._require_shapes(input_, target_)
        checks.index_range(self, "target", target_, self.n_classes, exc=RuntimeError)
        x, target = (input_, target_) if target_.ndim else (input_[None], target_[None])
        first = self.cutoffs[0]
        cluster = sum((target >= cutoff).astype(target.dtype) for cutoff in self.cutoffs[:-1])
        head = log_softmax(s.head(x), 1)
        output, _, legal = pick(head, jnp.where(cluster == 0, target, first - 1 + cluster), 1)
        for i, (low, high) in enumerate(itertools.pairwise(self.cutoffs)):
            within = pick(log_softmax(s.tail[i](x), 1), target - low, 1)[0]
            output = output + jnp.where((target >= low) & (target < high), within, 0)
        output = output * jnp.where(legal & (target < self.n_classes), 1, jnp.nan).astype(output.dtype)
        return _ASMoutput(output if target_.ndim else output[0], -jnp.mean(output))

    def _require_shapes(self, input: Array, target: Array) -> None:
        checks.rank(self, target, (0, 1), name="target")
        checks.rank(self, input, (target.ndim + 1,))
        same = target.ndim == 0 or input.shape[0] == target.shape[0]
        checks.require(same, self, "input and target must have one batch size", RuntimeError, input=input, target=target)
        checks.require(jnp.issubdtype(target.dtype, np.integer), self, "target must hold integers", RuntimeError, target=target)

    def compute_log_prob(self, s: Any, input: Array) -> Array:
        """The log-probabilities of all classes (N, n_classes), from the state ``s``."""
        first = self.cutoffs[0]
        head = log_softmax(s.head(input), 1)
        clusters = [log_softmax(s.tail[i](input), 1) + head[:, first + i, None] for i in range(len(self.cutoffs) - 1)]
        return jnp.concatenate([head[:, :first], *clusters], 1)

    def log_prob(self, params: tree.Tree, buffers: tree.Tree, input: Array) -> Array:
        """The log-probabilities of all classes. The module's method takes ``input`` alone.

        Shape: input (N, in_features), output (N, n_classes).
        """
        return self.compute_log_prob(View(self, params, tree.copy(buffers), Run(False, rng.KeyStream(None)), ""), input)

    def predict(self, params: tree.Tree, buffers: tree.Tree, input: Array) -> Array:
        """The most likely class of each row. The module's method takes ``input`` alone.

        Shape: input (N, in_features), output (N).
        """
        return jnp.argmax(self.log_prob(params, buffers, input), 1)
