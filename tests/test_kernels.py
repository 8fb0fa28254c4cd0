"""What the kernels are made of: bilinear functions with gradients of their own, sums in one pass, memory that is kept."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jnn.functional as F
from jnn.core.process import keep_freed_memory
from jnn.kernels import dense, matmul, patches, winograd
from jnn.kernels import stored as module_of_stored
from jnn.kernels.activations import softplus
from jnn.kernels.multilinear import multilinear
from jnn.kernels.platform import lowering
from jnn.kernels.stored import stored
from jnn.kernels.sums import sums
from jnn.kernels.taps import Geometry

from .derivatives import same
from .oracle import quick_jit


def _cubed(conv):
    return lambda x, w: (conv(x, w) ** 3).sum()


FORMS = {
    "one group": (4, 4),
    "groups": (4, 2),
    "many groups": (72, 2),
    "groups of more channels": (36, 18),
    "depthwise": (4, 1),
    "depthwise, more outputs": (2, 1),
}


@pytest.mark.parametrize(("channels", "per_group"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2, "stride": 2}], ids=str)
@pytest.mark.parametrize("size", [2, 5], ids=["smaller than the kernel", "larger"])
def test_every_derivative_of_a_convolution_is_that_of_xlas(channels, per_group, options, size, rng, quick_compilation):
    groups = channels // per_group
    if size + 2 * options.get("padding", 0) <= 2 * options.get("dilation", 1):
        options = options | {"padding": 2}
    _has_xlas_derivatives(rng, (2, channels, size, size), (channels, per_group, 3, 3), groups, options)


def test_every_derivative_of_a_convolution_by_a_number_a_channel_is_that_of_xlas(rng, quick_compilation):
    _has_xlas_derivatives(rng, (2, 4, 5, 5), (4, 1, 1, 1), 4, {})


def _has_xlas_derivatives(rng, input_shape, weight_shape, groups, options):
    x, w = jnp.asarray(rng.standard_normal(input_shape)), jnp.asarray(rng.standard_normal(weight_shape))
    stride, padding, dilation = (options.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))

    def ours(x, w):
        return F.conv2d(x, w, groups=groups, **options)

    def xlas(x, w):
        pads = [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, w, (stride,) * 2, pads, rhs_dilation=(dilation,) * 2, feature_group_count=groups)

    transforms = {
        "gradients": lambda f: jax.grad(_cubed(f), (0, 1)),
        "forward": lambda f: lambda x, w: jax.jvp(f, (x, w), (w.sum() * x, x.sum() * w)),
        "twice": lambda f: lambda x, w: jax.vjp(jax.grad(_cubed(f), (0, 1)), x, w)[1]((x, w)),
        "by sample": lambda f: jax.vmap(lambda x, w: jax.grad(_cubed(f), (0, 1))(x[None], w), (0, None)),
        "by weight": lambda f: lambda x, w: jax.vmap(jax.grad(_cubed(f), (0, 1)), (None, 0))(x, jnp.stack([w, 2 * w])),
    }
    for name, transform in transforms.items():
        same(*(quick_jit(transform(f))(x, w) for f in (ours, xlas)), 1e-8, 1, name)


FORCED = {
    "patches, few or wide": (3, (dense, "_by_matmul")),
    "patches": (3, (dense, "by_patches")),
    "patches of few places": (3, (dense, "by_patches"), (patches, "no_more_than_outputs")),
    "patches by image": (3, (dense, "by_patches"), (patches, "_by_image")),
    "images, of a kernel of 1": (1, (dense, "by_patches"), (patches, "_by_image")),
    "patches for the weight": (3, (dense, "_many_outputs")),
    "Winograd": (3, (dense, "_by_winograd")),
}


@pytest.mark.parametrize(("kernel", "rules"), [(kernel, rules) for kernel, *rules in FORCED.values()], ids=FORCED)
@pytest.mark.parametrize("function", [F.conv2d, F.conv_transpose2d])
def test_every_form_of_a_convolution_is_xlas(kernel, rules, function, rng, monkeypatch, quick_compilation):
    # The smaller factor of a product is another one in each function.
    shape = (4, 3) if function is F.conv2d else (3, 4)
    x, w = jnp.asarray(rng.standard_normal((2, 3, 6, 5))), jnp.asarray(rng.standard_normal((*shape, kernel, kernel)))
    asked = []

    def run(native):
        jax.clear_caches()
        with lowering(native=native, library=False):
            return jax.grad(lambda x, w: (function(x, w, padding=kernel // 2) ** 3).sum(), (0, 1))(x, w)

    for module, rule in rules:
        monkeypatch.setattr(module, rule, lambda *_, rule=rule: asked.append(rule) or True)
    monkeypatch.setattr(module_of_stored, "_LEAST", 1)
    for a, b in zip(run(False), run(True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    assert {*asked} == {rule for _, rule in rules}


@pytest.mark.parametrize("spatial", [(7,), (6, 5), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1), (-1, 2)], ids=str)
def test_winograds_algorithm(spatial, padding, rng, quick_compilation):
    n = len(spatial)
    if sum(padding) + min(spatial) < 3:
        padding = (1, 1)
    geometry = Geometry((1,) * n, (padding,) * n, (1,) * n, 1)
    x, w = jnp.asarray(rng.standard_normal((2, 3, *spatial))), jnp.asarray(rng.standard_normal((4, 3, *[3] * n)))
    expected, pull = jax.vjp(lambda w: jax.lax.conv_general_dilated(x, w, (1,) * n, (padding,) * n), w)
    np.testing.assert_allclose(winograd.conv(geometry, x, w), expected, rtol=1e-9, atol=1e-12)
    g = jnp.asarray(rng.standard_normal(expected.shape))
    np.testing.assert_allclose(winograd.by_weight(geometry, g, x), pull(g)[0], rtol=1e-9, atol=1e-12)


def test_winograds_algorithm_errs_no_more_than_xlas_convolution(rng):
    x, w = rng.standard_normal((4, 128, 8, 8)), rng.standard_normal((128, 128, 3, 3))
    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    exact = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)

    def error(y):
        return float(jnp.abs(y - exact).max() / jnp.abs(exact).max())

    # Its own roundings are those of two additions a number; the sums over channels, which it shortens, are most of the error.
    assert error(winograd.conv(geometry, x, w)) < 2 * error(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")) + 1e-7


def test_winograds_algorithm_is_off_where_products_are_asked_to_be_exact():
    x, w = jnp.ones((4, 128, 8, 8)), jnp.ones((128, 128, 3, 3))

    def multiplies_places():
        with lowering(native=False, library=False):
            return "ptc,poc->pto" in jax.jit(lambda x, w: F.conv2d(x, w, padding=1)).lower(x, w).as_text(debug_info=True)

    assert multiplies_places()
    with jax.default_matmul_precision("highest"):
        assert not multiplies_places()


@pytest.mark.parametrize(("channels", "outputs", "size"), [(3, 4, 6), (64, 64, 8), (128, 512, 2)])
def test_convolutions_of_batches_whose_size_is_left_open(channels, outputs, size, rng):
    (batch,) = jax.export.symbolic_shape("batch")
    w = jnp.asarray(rng.standard_normal((outputs, channels, 3, 3)))
    x = jnp.asarray(rng.standard_normal((3, channels, size, size)))
    step = jax.jit(jax.value_and_grad(lambda x: (F.conv2d(x, w, padding=1) ** 2).sum()))
    with lowering(native=False, library=False):
        exported = jax.export.export(step)(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
        for a, b in zip(exported.call(x), step(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


class TestStored:
    @pytest.mark.parametrize("first", [1.0, -np.inf, np.inf, np.nan])
    def test_is_the_identity_in_every_transformation(self, first, monkeypatch):
        monkeypatch.setattr(module_of_stored, "_LEAST", 1)
        x = jnp.asarray([[first, 2.0], [3.0, 4.0]])
        np.testing.assert_array_equal(stored(x), x)
        np.testing.assert_array_equal(jax.jit(stored)(x), x)
        np.testing.assert_array_equal(jax.vmap(stored, 1, 1)(x), x)
        y, slope = jax.jvp(stored, (x,), (2 * jnp.ones_like(x),))
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(slope, 2 * jnp.ones_like(x))
        np.testing.assert_array_equal(jax.vjp(stored, x)[1](3 * jnp.ones_like(x))[0], 3 * jnp.ones_like(x))

    def test_keeps_xla_from_fusing(self):
        x = jnp.ones((512, 512), jnp.float32)

        def loops(rows):
            return jax.jit(lambda x: stored(x[:rows].T) + 1).lower(x).compile().as_text().count(" fusion(")

        assert loops(512) == 2
        assert loops(2) == 1, "small arrays are left alone"


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_under_shard_map(groups, check_vma, rng, monkeypatch):
    monkeypatch.setattr(module_of_stored, "_LEAST", 1)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = jnp.asarray(rng.standard_normal((2, 4, 5, 5))), jnp.asarray(rng.standard_normal((4, 4 // groups, 3, 3)))

    def slopes(x, w):
        return jax.grad(lambda x, w: (F.conv_transpose2d(F.conv2d(x, w, groups=groups), w, groups=groups) ** 3).sum(), (0, 1))(x, w)

    def mapped(x, w):
        by_input, by_weight = slopes(x, w)
        return by_input, by_weight if check_vma else jax.lax.psum(by_weight, "d")

    found = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=(P("d"), P()), out_specs=(P("d"), P()), check_vma=check_vma))(x, w)
    for a, b in zip(found, slopes(x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("rows", [2, 7], ids=["left is smaller", "result is smaller"])
@pytest.mark.parametrize("wraps", [jax.grad, lambda f, n: jax.grad(lambda *at: jax.grad(f, 0)(*at).sum(), n)], ids=["first", "second"])
def test_products_of_large_matrices_have_the_gradients_of_jaxs(rows, wraps, rng, monkeypatch):
    monkeypatch.setattr(matmul, "_LARGE", 1)
    monkeypatch.setattr(module_of_stored, "_LEAST", 1)
    a, b = jnp.asarray(rng.standard_normal((3, 5, rows))), jnp.asarray(rng.standard_normal((3, rows, 4)))
    ours = functools.partial(matmul.matmul, dtype=a.dtype)
    got, expected = (jax.jit(wraps(_cubed(f), (0, 1)))(a, b) for f in (ours, jnp.matmul))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), got, expected)


def test_reverse_mode_runs_the_gradients_that_are_given():
    ran = []
    product = multilinear(
        lambda scale, a, b: scale * a * b,
        lambda scale, g, b, a: ran.append(f"left {a.shape}") or scale * g * b,
        lambda scale, g, a, b: ran.append(f"right {b.shape}") or scale * g * a,
    )
    a, b = jnp.arange(1.0, 4.0), jnp.arange(2.0, 5.0)
    left, right = jax.grad(lambda a, b: product(3.0, a, b).sum(), (0, 1))(a, b)
    np.testing.assert_allclose(left, 3 * b)
    np.testing.assert_allclose(right, 3 * a)
    assert {*ran} == {"left (3,)", "right (3,)"}
    ran.clear()
    np.testing.assert_allclose(jax.grad(lambda a: product(2.0, a, b).sum())(a), 2 * b)
    assert ran == ["left (3,)"], "nothing is computed for what is not differentiated"
    ran.clear()
    by_sample = jax.vmap(functools.partial(product, 5.0), (1, None))
    samples = jnp.stack([a, 2 * a, 3 * a, 4 * a], 1)
    left, right = jax.grad(lambda samples, b: by_sample(samples, b).sum(), (0, 1))(samples, b)
    np.testing.assert_allclose(left, 5 * jnp.stack([b] * 4, 1))
    np.testing.assert_allclose(right, 5 * samples.sum(1), err_msg="what samples share")
    assert {*ran} == {"left (3,)", "right (3,)"}


class TestSums:
    def test_values_and_derivatives(self, rng):
        x, y = jnp.asarray(rng.standard_normal((3, 4, 5))), jnp.asarray(rng.standard_normal((3, 4, 5)))

        def one(x, y):
            return [v**2 for v in sums([x, x * y], (0, 2))]

        def each(x, y):
            return [x.sum((0, 2)) ** 2, (x * y).sum((0, 2)) ** 2]

        for transform in (
            lambda f: f,
            lambda f: jax.jacrev(f, (0, 1)),
            lambda f: jax.jacfwd(f, (0, 1)),
            lambda f: jax.hessian(f),
            lambda f: lambda x, y: jax.vmap(f, (0, None))(jnp.stack([x, y]), y),
        ):
            for a, b in zip(jax.tree.leaves(transform(one)(x, y)), jax.tree.leaves(transform(each)(x, y)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10)

    def test_is_one_pass_after_two_transpositions(self):
        x = jnp.ones((4, 6))
        twice = jax.linear_transpose(jax.linear_transpose(lambda a, b: sums([a, b], (1,)), x, x), [x[:, 0]] * 2)
        text = str(jax.make_jaxpr(twice)((x, x)))
        assert "sums[" in text
        assert "reduce_sum" not in text


KEPT = """
import resource, jax, jax.numpy as jnp
import jnn
f, x = jax.jit(lambda x: x + 1), jnp.ones(12 << 20)
counts = []
for _ in range(16):
    jax.block_until_ready(f(x))
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(b - a for a, b in zip(counts, counts[1:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_memory_of_large_programs_is_kept():
    def faults(**environ):
        out = subprocess.run([sys.executable, "-c", KEPT], check=True, capture_output=True, text=True, env=os.environ | environ)
        return float(out.stdout)

    assert faults() < faults(JNN_KEEP_MEMORY="0") / 2


def test_what_is_kept_must_be_a_number(monkeypatch):
    monkeypatch.setenv("JNN_KEEP_MEMORY", "much")
    with pytest.raises(ValueError, match="JNN_KEEP_MEMORY must be a number of MiB, got JNN_KEEP_MEMORY='much'"):
        keep_freed_memory()


RUNS_ON = """
import jnn, jax, jax.numpy as jnp
slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, x: jnp.tanh(x @ x), x))
slow(jnp.ones((256, 256))).block_until_ready()
print(slow(jnp.ones((256, 256))).is_ready())
"""


@pytest.mark.parametrize(
    ("environ", "before"), [({}, ""), ({"JNN_INLINE_DISPATCH": "0"}, ""), ({}, "jax.config.update('jax_cpu_enable_async_dispatch', True)")]
)
def test_the_caller_runs_programs_unless_told_otherwise(environ, before):
    lines = RUNS_ON.strip().splitlines()
    program = "\n".join([lines[0], before, *lines[1:]])
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ | environ)
    assert out.stdout.strip() == str(not environ and not before)


def test_softplus_keeps_the_digits_of_its_type():
    x = jnp.concatenate([jnp.linspace(-100, 100, 4001), jnp.asarray([0.0, -np.inf, np.inf, np.nan])])
    np.testing.assert_allclose(softplus(x), jnp.logaddexp(x, 0), rtol=1e-15)
    single = x.astype(jnp.float32)
    # Numbers below the smallest normal one are flushed to 0.
    np.testing.assert_allclose(softplus(single), jnp.logaddexp(single.astype(float), 0), rtol=4e-7, atol=1.2e-38)
    x = x[:-3]
    np.testing.assert_allclose(jax.vmap(jax.grad(softplus))(x), jax.nn.sigmoid(x), rtol=1e-12)
    curvature = jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)
    # 1 - sigmoid(x) has lost the digits of 1: an error of 1e-16.
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(softplus)))(x), curvature, rtol=1e-12, atol=1e-15)
