"""torch's own test databases, with jnn on the other side.

``torch.testing._internal`` lists for every module and function inputs that torch tests itself with. Each is run on torch and
on jnn with the same numbers; outputs, dtypes, buffers and gradients must agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import jnn

from . import oracle

MODULES = {info.name.split(".")[-1]: info for info in module_db if info.name.startswith("nn.")}
FUNCTIONS: dict[str, list[Any]] = {}
for _op in op_db:
    if _op.name.startswith("nn.functional."):
        FUNCTIONS.setdefault(_op.name.split(".")[-1], []).append(_op)

TOLERANCE = {torch.float64: (1e-6, 1e-8), torch.float32: (2e-4, 2e-5)}

# Functions whose values are drawn at random, and when: compared by shape and dtype.
ALWAYS = lambda sample: True  # noqa: E731
RANDOM: dict[str, Callable[[Any], bool]] = {
    "fractional_max_pool2d": ALWAYS,
    "fractional_max_pool3d": ALWAYS,
    "gumbel_softmax": ALWAYS,
    "rrelu": lambda s: bool(s.kwargs.get("training", False)),
    "scaled_dot_product_attention": lambda s: bool(s.kwargs.get("dropout_p")),
    "multi_head_attention_forward": lambda s: bool(s.args[9]) and s.kwargs.get("training", True),
}
for _name in ("dropout", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"):
    RANDOM[_name] = lambda s: s.kwargs.get("training", True) is not False and s.kwargs.get("p", 0.5) != 0


def to_jax(x: Any) -> Any:
    """torch's values, nests and modules as jnn's."""
    if isinstance(x, torch.nn.utils.rnn.PackedSequence):
        return jnn.utils.rnn.PackedSequence(*map(to_jax, x))
    if isinstance(x, torch.Tensor):
        return jnp.asarray(x.detach().resolve_conj().resolve_neg().numpy())
    if isinstance(x, torch.dtype):
        return np.dtype(str(x).removeprefix("torch."))
    if isinstance(x, torch.nn.Module):
        return _to_module(x)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(to_jax, x))
    if isinstance(x, (tuple, list)):
        return tuple(map(to_jax, x)) if isinstance(x, torch.Size) else type(x)(map(to_jax, x))
    if isinstance(x, dict):
        return {k: to_jax(v) for k, v in x.items() if k != "device"}
    if callable(x) and str(getattr(x, "__module__", "")).startswith("torch"):
        return getattr(jnn.functional, getattr(x, "__name__", ""), x)
    return x


def _to_module(x: torch.nn.Module) -> Any:
    made = getattr(jnn, type(x).__name__)
    if isinstance(x, torch.nn.LayerNorm):
        return made(x.normalized_shape, eps=x.eps, elementwise_affine=x.elementwise_affine, bias=x.bias is not None)
    if isinstance(x, (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)):
        return made(
            x.linear1.in_features,
            x.self_attn.num_heads,
            x.linear1.out_features,
            x.dropout.p,
            to_jax(x.activation),
            x.norm1.eps,
            batch_first=x.self_attn.batch_first,
            norm_first=x.norm_first,
            bias=x.linear1.bias is not None,
        )
    return made()


def _flat(x: Any) -> list[Any]:
    """The leaves of a nest in one order for both sides; a torch PackedSequence and None among them as jnn flattens them."""
    return oracle.leaves(x)


class Wanted:
    """The tensors of a torch nest that require gradients, and a way to put jax arrays in their place."""

    def __init__(self, nest: Any) -> None:
        self.nest = nest
        # Each once: torch has cases whose input and target are one tensor.
        self.tensors = [*{id(x): x for x in _flat(nest) if isinstance(x, torch.Tensor) and x.requires_grad}.values()]

    def rebuild(self, values: list[Any]) -> Any:
        found = {id(t): v for t, v in zip(self.tensors, values, strict=True)}

        def walk(x: Any) -> Any:
            if id(x) in found:
                return found[id(x)]
            if isinstance(x, torch.nn.utils.rnn.PackedSequence):
                return jnn.utils.rnn.PackedSequence(*map(walk, x))
            if isinstance(x, (tuple, list)) and not isinstance(x, torch.Size):
                return type(x)(*map(walk, x)) if hasattr(x, "_fields") else type(x)(map(walk, x))
            if isinstance(x, dict):
                return {k: walk(v) for k, v in x.items() if k != "device"}
            return to_jax(x)

        return walk(self.nest)


def _floats(x: Any) -> list[Any]:
    return [o for o in _flat(x) if str(getattr(o, "dtype", "")).removeprefix("torch.") in ("float32", "float64")]


def compare(
    call_t: Callable[..., Any], call_j: Callable[..., Any], nest: Any, dtype: torch.dtype, *, random: bool, state: Any = None
) -> None:
    """``call_t(args, kwargs)`` against ``call_j(args, kwargs, params) -> (output, buffers)``.

    ``state`` is ``(torch parameters by name, jnn params, a function giving torch's buffers)``.
    """
    rtol, atol = (0, 1e30) if random else TOLERANCE[dtype]
    params_t, params, buffers_t = state or ({}, {}, dict)
    wanted = Wanted(nest)
    values = [to_jax(t) for t in wanted.tensors]
    out_t = call_t(*nest)
    out, buffers = call_j(*wanted.rebuild(values), params)
    oracle.assert_close(out, out_t, rtol, atol, "output")
    oracle.assert_close(buffers, jnn.core.tree.unflatten(buffers_t()), rtol, atol, "buffer")
    outs_t = _floats(out_t)
    index = [i for i, o in enumerate(outs_t) if o.requires_grad]
    trained = [p for p in params_t.values() if p.requires_grad]
    if random or not index or not (wanted.tensors or trained):
        return
    rng = np.random.default_rng(1)
    cts = [rng.standard_normal(tuple(outs_t[i].shape)).astype(str(outs_t[i].dtype).removeprefix("torch.")) for i in index]
    both = [*wanted.tensors, *trained]
    grads_t = torch.autograd.grad([outs_t[i] for i in index], both, [torch.tensor(c) for c in cts], allow_unused=True)
    grads_t = [torch.zeros_like(w) if g is None else g for g, w in zip(grads_t, both, strict=True)]

    def loss(values: list[Any], params: Any) -> Any:
        outs = _floats(call_j(*wanted.rebuild(values), params)[0])
        return sum(jnp.sum(outs[i] * c) for i, c in zip(index, cts, strict=True))

    got, got_params = jax.jit(jax.grad(loss, argnums=(0, 1)))(values, params)
    flat = jnn.core.tree.flatten(got_params)
    got += [flat[n] for n, p in params_t.items() if p.requires_grad]
    oracle.assert_close(got, grads_t, rtol, atol, "gradient")


def module_cases(info: Any, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every case of a module that torch itself can make, as a description and a check to call."""
    name = info.name.split(".")[-1]
    for training in (True, False):
        torch.manual_seed(0)
        for i, case in enumerate(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)):
            try:
                theirs = info.module_cls(*case.constructor_input.args, **case.constructor_input.kwargs).to(dtype).train(training)
                if info.is_lazy:
                    with torch.no_grad():
                        theirs(*case.forward_input.args, **case.forward_input.kwargs)
            except Exception:  # torch refuses its own case
                continue
            yield f"{name}[{i}] train={training} {case.desc}", lambda t=theirs, c=case, m=training: check_module(name, info, t, c, dtype, m)


def check_module(name: str, info: Any, theirs: torch.nn.Module, case: Any, dtype: torch.dtype, training: bool) -> None:
    """One case of a module."""
    constructor, (args, kwargs) = case.constructor_input, (tuple(case.forward_input.args), case.forward_input.kwargs)
    mine = getattr(jnn, name)(*to_jax(tuple(constructor.args)), **to_jax(constructor.kwargs))
    mine.to(dtype=to_jax(dtype)).train(training)
    if info.is_lazy:
        mine(*to_jax(args), **to_jax(kwargs))
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    params, held = jnn.split(mine)

    def call(a: Any, k: Any, p: Any) -> Any:
        return jnn.pure(mine).apply(p, held, *a, train=training, key=jax.random.key(0), **k)

    frozen = {n: p for n, p in theirs.named_parameters() if not p.requires_grad}
    state = dict(theirs.named_parameters()), params, lambda: {**dict(theirs.named_buffers()), **frozen}
    random = name.startswith("FractionalMaxPool") and "_random_samples" not in constructor.kwargs
    compare(lambda a, k: theirs(*a, **k), call, (args, kwargs), dtype, random=random, state=state)


def function_cases(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every sample of a function, with and without gradients where torch has more without."""
    for op in FUNCTIONS[name]:
        kind = dtype if dtype in op.dtypes else next((d for d in (torch.int64, torch.complex128) if d in op.dtypes), None)
        if kind is None:  # a variant for half types only
            continue
        torch.manual_seed(0)
        samples = list(op.sample_inputs("cpu", kind, requires_grad=op.supports_autograd and kind == dtype))
        plain = list(op.sample_inputs("cpu", kind, requires_grad=False))
        for i, sample in enumerate(samples + (plain if len(plain) > len(samples) else [])):
            yield f"{name} {op.variant_test_name}[{i}] {sample.summary()}"[:300], lambda o=op, s=sample: check_function(name, o, s, dtype)


def check_function(name: str, op: Any, sample: Any, dtype: torch.dtype) -> None:
    """One sample of a function."""
    function = getattr(jnn.functional, name)
    random = RANDOM.get(name, lambda s: False)(sample)
    key = {"key": jax.random.key(0)} if random and "key" in inspect.signature(function).parameters else {}

    def call(a: Any, k: Any, p: Any) -> Any:
        return function(*_swapped(name, a), **k, **key), {}

    compare(lambda a, k: op.op(*a, **k), call, ((sample.input, *sample.args), dict(sample.kwargs)), dtype, random=random)


def _swapped(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch's samples of the embeddings have weight and input the other way round."""
    return (args[1], args[0], *args[2:]) if name in ("embedding", "embedding_bag") else args


def error_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every bad input in the databases, as a description and a call that jnn must refuse."""
    for name, info in MODULES.items():
        if info.module_error_inputs_func and hasattr(jnn, name):
            for i, case in enumerate(info.module_error_inputs_func(info, "cpu", torch.float32, requires_grad=False, training=True)):
                yield f"{name}[{i}] {case.error_regex}", lambda n=name, c=case.module_error_input: _call_bad_module(n, c)
    for name, ops in FUNCTIONS.items():
        for op in ops:
            for i, case in enumerate(op.error_inputs("cpu") if op.error_inputs_func else ()):
                args = _swapped(name, to_jax((case.sample_input.input, *case.sample_input.args)))
                kwargs = to_jax(case.sample_input.kwargs)
                yield f"F.{name}[{i}] {case.error_regex}", lambda n=name, a=args, k=kwargs: getattr(jnn.functional, n)(*a, **k)


def _call_bad_module(name: str, case: Any) -> Any:
    made = getattr(jnn, name)(*to_jax(tuple(case.constructor_input.args)), **to_jax(case.constructor_input.kwargs))
    return made(*to_jax(tuple(case.forward_input.args)), **to_jax(case.forward_input.kwargs))
