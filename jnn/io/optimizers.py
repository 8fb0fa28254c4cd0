"""torch's optimizer states and optax's: SGD with momentum, Adam and AdamW, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core import checks
from ..module.module import Module
from ..optim import Optimizer
from .errors import require

# optax's fields of a tree like the parameters, and torch's names of the same numbers.
_SLOTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
_SGD = {"momentum", "dampening", "nesterov"}


def optax_from_torch(state_dict: Mapping[str, Any], names: Sequence[str] | Module) -> optax.GradientTransformation:
    """The optax transformation that does what a torch optimizer does: SGD, Adam or AdamW, with its groups' settings.

    Args:
        state_dict: what the optimizer's ``state_dict()`` gave, as ``jnn.io.load`` reads it.
        names: the parameters' names in the order in which the optimizer had them, or the module whose parameters they are.

    Raises:
        CheckpointError: it is another optimizer, or has ``amsgrad``, ``dampening``, ``maximize`` or a step that optax lacks.

    Differs from torch: the learning rate is that of now, and constant; for a schedule build the transformation yourself.
    """
    groups = _groups("optax_from_torch", state_dict)
    labels = {name: str(number) for number, names_in in enumerate(_names_by_group(state_dict, names)) for name in names_in}
    transforms: dict[Any, optax.GradientTransformation] = {str(number): _transform(group) for number, group in enumerate(groups)}
    if len(transforms) == 1:
        return transforms["0"]

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = _dotted(path)
        require(name in labels, "optax_from_torch", "every parameter must be in a group", name=name)
        return labels[name]

    return optax.multi_transform(transforms, lambda params: jax.tree_util.tree_map_with_path(label, params))


def _transform(group: Mapping[str, Any]) -> optax.GradientTransformation:
    who = "optax_from_torch"
    require(not group.get("maximize"), who, "maximize=True has no counterpart; negate the loss")
    decay = float(group.get("weight_decay", 0))
    rate = optax.scale(-float(group["lr"]))
    if group.keys() >= _SGD:
        momentum = float(group["momentum"])
        require(not momentum or not group["dampening"], who, "dampening has no counterpart", dampening=group["dampening"])
        trace = [optax.trace(momentum, nesterov=bool(group["nesterov"]))] if momentum else []
        return optax.chain(*[optax.add_decayed_weights(decay)] * bool(decay), *trace, rate)
    adam = group.keys() >= {"betas", "eps", "amsgrad"}
    require(adam, who, "only SGD, Adam and AdamW have counterparts", settings=sorted(group))
    require(not group["amsgrad"], who, "amsgrad has no counterpart")
    # Before torch 2.7 the two had the same settings.
    known = not decay or "decoupled_weight_decay" in group
    require(known, who, "Adam with weight decay, or AdamW? This old state does not tell; build the transformation yourself")
    decayed = [optax.add_decayed_weights(decay)] if decay else []
    scale = optax.scale_by_adam(*map(float, group["betas"]), eps=float(group["eps"]))
    return optax.chain(*([scale, *decayed] if group.get("decoupled_weight_decay") else [*decayed, scale]), rate)


def optax_state_from_torch(opt_state: Any, state_dict: Mapping[str, Any], names: Sequence[str] | Module, step: int | None = None) -> Any:
    """An optax state with the moments, momenta and step of a torch optimizer.

    Args:
        opt_state: what the transformation's ``init(params)`` gave; ``params`` may be nested.
        state_dict: what torch's optimizer's ``state_dict()`` gave.
        names: the parameters' names in the order in which the optimizer had them, or the module whose parameters they are.
        step: how many steps were taken, where the transformation counts them and torch does not (SGD with a schedule).

    Raises:
        CheckpointError: the two keep different things of a parameter, or parameters are at different steps.
    """
    who = "optax_state_from_torch"
    states = _states_by_name(who, state_dict, names)
    steps = {int(state["step"]) for state in states.values() if "step" in state} | ({step} if step is not None else set())
    require(len(steps) <= 1, who, "all parameters must be at one step", steps=sorted(steps))
    used: set[tuple[str, str]] = set()

    def convert(path: tuple[Any, ...], leaf: Any) -> Any:
        field, name = _field(path)
        if field == "count" and not name:
            require(steps or not states, who, "torch's state does not tell the step that this transformation counts; pass step=")
            return jnp.asarray(steps.copy().pop() if steps else 0, leaf.dtype)
        if not name or not states:
            return leaf
        slot = _SLOTS.get(field, "")
        require(slot in states.get(name, {}), who, "torch's state lacks what the transformation keeps", **{field: name})
        value = states[name][slot]
        used.add((name, slot))
        value = np.zeros(leaf.shape, leaf.dtype) if value is None else value  # momentum before the first step
        require(tuple(value.shape) == leaf.shape, who, "shapes must be equal", name=name, torch=tuple(value.shape), optax=leaf.shape)
        return jnp.array(value, leaf.dtype)

    new = jax.tree_util.tree_map_with_path(convert, opt_state)
    held = {(name, slot) for name, state in states.items() for slot, value in state.items() if slot != "step" and value is not None}
    lost = sorted(f"{slot} of {name}" for name, slot in held - used)
    require(not lost, who, "the transformation has no place for what torch keeps", lost=lost)
    return new


def optax_state_to_torch(opt_state: Any, param_groups: Sequence[Mapping[str, Any]], names: Sequence[str] | Module) -> dict[str, Any]:
    """A state_dict that a torch optimizer loads: saved by ``jnn.io.save``, it lets a run go on in torch.

    Args:
        opt_state: the state of a transformation of SGD, Adam or AdamW.
        param_groups: the groups with their settings, as in torch's ``optimizer.state_dict()["param_groups"]``; torch takes its
            settings from them.
        names: the parameters' names in torch's order, or the module whose parameters they are.

    Raises:
        CheckpointError: the transformation keeps what torch's optimizers do not.
    """
    who = "optax_state_to_torch"
    groups = {"param_groups": [dict(group) for group in param_groups]}
    found: dict[str, dict[str, Any]] = {}
    counts: set[int] = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(opt_state)[0]:
        field, name = _field(path)
        if field == "count" and not name:
            counts.add(int(leaf))
        elif name:
            require(field in _SLOTS, who, "torch has no counterpart of what the transformation keeps", **{field: name})
            found.setdefault(name, {})[_SLOTS[field]] = leaf
    require(len(counts) <= 1, who, "all parameters must be at one step", steps=sorted(counts))
    state: dict[int, dict[str, Any]] = {}
    known: set[str] = set()
    for group, names_in in zip(groups["param_groups"], _names_by_group(groups, names), strict=True):
        for number, name in zip(group["params"], names_in, strict=True):
            known.add(name)
            # A parameter of torch's that is not trained here has no state, as one that never had a gradient.
            if name in found:
                adam = "exp_avg" in found[name]
                state[number] = ({"step": np.float32(counts.copy().pop())} if adam else {}) | found[name]
    checks.require(known >= found.keys(), who, "every parameter must be in a group", KeyError, names=sorted(found.keys() - known))
    return {"state": state, **groups}


def load_torch_optimizer(
    optimizer: Optimizer, state_dict: Mapping[str, Any], names: Sequence[str] | None = None, step: int | None = None
) -> None:
    """Load a torch optimizer's state into a jnn Optimizer over the same model; see :func:`optax_state_from_torch`.

    Args:
        names: None for the order of the model's parameters, as in ``torch.optim.Adam(model.parameters())``.
    """
    new = optax_state_from_torch(_state(optimizer), state_dict, optimizer.model if names is None else names, step)
    optimizer.load_state_dict({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(new)[0]})


def torch_optimizer_state(
    optimizer: Optimizer, param_groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The state_dict that a torch optimizer over the same model loads; see :func:`optax_state_to_torch`."""
    return optax_state_to_torch(_state(optimizer), param_groups, optimizer.model if names is None else names)


def _state(optimizer: Optimizer) -> Any:
    optimizer.prepare()
    return optimizer._state


def _field(path: tuple[Any, ...]) -> tuple[str, str]:
    """The field that a leaf of an optax state is in, and the dotted name of its parameter, if it is of one."""
    last = max((i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)), default=-1)
    # The settings that optax.inject_hyperparams keeps are in a dict, too.
    settings = last >= 0 and path[last].name in ("hyperparams", "hyperparams_states")
    return (path[last].name if last >= 0 else "", "" if settings else _dotted(path[last + 1 :]))


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def _groups(who: str, state_dict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    sound = (
        isinstance(groups, (list, tuple)) and groups and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
    )
    require(sound, who, "this must be the state_dict of a torch optimizer, with param_groups", found=type(state_dict))
    return list(groups or ())


def _names_by_group(state_dict: Mapping[str, Any], names: Sequence[str] | Module) -> list[list[str]]:
    """The names of each group's parameters: those that torch has saved, else those given, in order."""
    who = "optimizer"
    groups = _groups(who, state_dict)
    if all("param_names" in group for group in groups):
        return [list(group["param_names"]) for group in groups]
    count = sum(len(group["params"]) for group in groups)
    if isinstance(names, Module):
        every = dict(names.named_parameters())
        trained = [name for name, parameter in every.items() if parameter.requires_grad]
        given = [*every] if len(every) == count else trained
        certain = len(groups) == 1
        require(certain, who, "with several groups, pass the parameters' names in the optimizer's order", groups=len(groups))
    else:
        given = list(names)
    require(
        len(given) == count and len({*given}) == count, who, "there must be a name for each parameter", names=len(given), parameters=count
    )
    feed = iter(given)
    return [[next(feed) for _ in group["params"]] for group in groups]


def _states_by_name(who: str, state_dict: Mapping[str, Any], names: Sequence[str] | Module) -> dict[str, Mapping[str, Any]]:
    states = state_dict.get("state", {})
    by_group = zip(_groups(who, state_dict), _names_by_group(state_dict, names), strict=True)
    numbers = {number: name for group, names_in in by_group for number, name in zip(group["params"], names_in, strict=True)}
    sound = isinstance(states, Mapping) and states.keys() <= numbers.keys() and all(isinstance(s, Mapping) for s in states.values())
    require(sound, who, "the state must be of the parameters in the groups")
    return {numbers[number]: state for number, state in states.items()}
