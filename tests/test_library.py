"""jnn's library of kernels for CPUs: that it is built and called, and that each of its forms computes what it is defined as."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn.functional as F
from jnn.kernels import convolution, library
from jnn.kernels.convolution import LIBRARY_FORMS
from jnn.kernels.platform import by_library, lowering

from .derivatives import same
from .oracle import quick_jit


def test_the_library_is_there():
    # The tests are of both: where no compiler is, this one says that the others see nothing of it.
    assert library.loaded() is not None
    assert by_library()


def _slopes(function, **options):
    return jax.grad(lambda x, w, bias: (function(x, w, bias, **options) ** 3).sum(), (0, 1, 2))


FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
# Channels, channels of a group, outputs, spatial sizes, kernel, options.
CASES = {
    "3 x 3": (3, 3, 5, (7, 9), (3, 3), {"padding": 1}),
    "3 x 3, larger than tiles": (20, 20, 33, (19, 36), (3, 3), {"padding": 1}),
    "odd padding and kernels": (2, 2, 17, (6, 11), (2, 5), {"padding": (0, 3)}),
    "stride": (3, 3, 4, (9, 21), (3, 3), {"stride": 2, "padding": 1}),
    "strides over more than the kernel": (2, 2, 3, (11, 10), (1, 2), {"stride": (3, 4)}),
    "long strides": (3, 3, 17, (37, 90), (5, 5), {"stride": (4, 5), "padding": (1, 2)}),
    "pieces": (3, 3, 20, (16, 80), (4, 4), {"stride": 4}),
    "pieces that make whole tiles": (2, 2, 15, (32, 64), (8, 8), {"stride": 8, "batch": 2}),
    "dilation": (3, 3, 16, (9, 37), (3, 3), {"dilation": (2, 3), "padding": 2}),
    "dilation and stride": (3, 3, 4, (9, 14), (3, 2), {"dilation": 2, "stride": (2, 3), "padding": 2}),
    "kernel of 1": (18, 18, 15, (5, 7), (1, 1), {}),
    "kernel of 1, stride": (18, 18, 15, (5, 7), (1, 1), {"stride": 2}),
    "nothing but padding": (2, 2, 3, (2, 2), (1, 1), {"padding": 1, "stride": 3}),
    "one channel": (1, 1, 1, (1, 2), (1, 1), {}),
    "an image smaller than its kernel": (2, 2, 3, (2, 2), (3, 3), {"padding": 1}),
    "groups": (6, 2, 9, (5, 19), (3, 3), {"padding": 1, "groups": 3}),
    "large groups": (34, 17, 34, (6, 6), (3, 3), {"padding": 1, "groups": 2, "stride": 2}),
    "depthwise": (5, 1, 5, (6, 17), (3, 3), {"padding": 1, "groups": 5}),
    "depthwise, two outputs, stride": (3, 1, 6, (9, 33), (3, 5), {"padding": (1, 2), "groups": 3, "stride": 2}),
    "depthwise, many outputs": (2, 1, 8, (5, 7), (3, 3), {"groups": 2, "stride": 3, "padding": 1}),
    "depthwise, small images": (20, 1, 20, (7, 7), (5, 5), {"padding": 2, "groups": 20, "batch": 2}),
    "depthwise in steps, dilated": (17, 1, 17, (9, 12), (3, 4), {"padding": (2, 1), "groups": 17, "stride": 2, "dilation": (2, 1)}),
    "depthwise in three dimensions": (18, 1, 18, (4, 5, 6), (3, 3, 3), {"padding": (0, 1, 1), "groups": 18, "stride": (1, 2, 1)}),
    "depthwise, large images": (2, 1, 2, (40, 70), (3, 3), {"padding": 1, "groups": 2, "batch": 1}),
    "depthwise, tall kernels": (3, 1, 3, (19, 37), (9, 4), {"padding": (4, 2), "groups": 3, "dilation": (1, 2)}),
    "depthwise, tall kernels of volumes": (2, 1, 2, (6, 9, 10), (5, 5, 4), {"padding": 2, "groups": 2}),
    "one output of tall kernels": (5, 5, 1, (13, 9), (5, 3), {"padding": 2}),
    "depthwise, more taps than registers": (18, 1, 36, (40,), (23,), {"padding": 11, "groups": 18}),
    # Tiles are of a depth or two, of which many taps read padding alone.
    "large kernels of volumes": (2, 2, 15, (5, 6, 7), (7, 5, 6), {"padding": (3, 2, 3)}),
    "large dilated kernels of one channel": (1, 1, 17, (9, 4, 5), (5, 7, 6), {"padding": (7, 3, 2), "dilation": (2, 1, 1)}),
    "one dimension": (4, 4, 17, (50,), (4,), {"padding": 2}),
    "one dimension, dilated groups": (4, 2, 6, (35,), (3,), {"padding": 2, "dilation": 3, "groups": 2}),
    "many images in steps": (18, 18, 34, (5, 7), (3, 3), {"padding": 1, "stride": 2, "batch": 9}),
    "one place an image, in steps": (18, 18, 20, (2, 2), (3, 3), {"padding": 1, "stride": 2}),
    "few places of one image": (33, 33, 7, (2, 3), (3, 3), {"padding": 1, "batch": 1}),
    "one place of a kernel": (18, 18, 5, (1, 1), (3, 5), {"padding": (1, 2)}),
    "few places, some elements of the kernel outside": (9, 9, 10, (3, 2, 2), (4, 3, 3), {"padding": (1, 2, 1), "stride": 3, "batch": 2}),
    "few places of long dilated kernels": (5, 5, 9, (70,), (19,), {"padding": 2, "dilation": 3, "stride": 9}),
    "many images of few rows": (17, 17, 20, (3, 2), (5, 3), {"padding": (2, 1), "batch": 17}),
    "whole tiles": (33, 33, 40, (7, 9), (3, 3), {"padding": 1, "batch": 8}),
    "more weights than tiles": (20, 20, 70, (4, 4), (3, 3), {"padding": 1, "batch": 3}),
    "three dimensions, one depth": (17, 17, 18, (5, 6, 6), (1, 3, 3), {"padding": (0, 1, 1)}),
    "three dimensions of channels": (17, 17, 18, (4, 5, 6), (3, 3, 3), {"padding": 1}),
    "three dimensions": (3, 3, 5, (4, 5, 6), (3, 3, 3), {"padding": 1}),
    "three dimensions, stride": (2, 2, 20, (5, 4, 7), (2, 3, 3), {"padding": 1, "stride": (1, 2, 2)}),
}


@pytest.mark.parametrize(("channels", "per_group", "outputs", "sizes", "kernel", "options"), CASES.values(), ids=CASES)
def test_every_form_of_a_convolution_is_its_definition(
    channels, per_group, outputs, sizes, kernel, options, rng, monkeypatch, quick_compilation
):
    options = dict(options)
    x, w = rng.standard_normal((options.pop("batch", 3), channels, *sizes)), rng.standard_normal((outputs, per_group, *kernel))
    turned = rng.standard_normal((channels, outputs // options.get("groups", 1), *kernel))
    bias = rng.standard_normal(outputs)
    for functions, weight in ((FUNCTIONS, w), (TRANSPOSED, turned)):
        slopes = _slopes(functions[len(sizes)], **options)
        with lowering(native=True):
            jax.clear_caches()
            expected = quick_jit(lambda *arrays, slopes=slopes: slopes(*arrays))(x, weight, bias)
        # One template makes both types: the exacter one tells of every form, and the other of those that are chosen.
        for dtype, rtol, forms in ((np.float64, 1e-11, LIBRARY_FORMS), (np.float32, 2e-4, LIBRARY_FORMS[:1])):
            arrays = [jnp.asarray(array, dtype) for array in (x, weight, bias)]
            for form in forms:
                monkeypatch.setattr(convolution, "LIBRARY_FORM", form)
                jax.clear_caches()
                call = jax.jit(slopes).lower(*arrays)
                assert "jnn_conv" in call.as_text()
                same(call.compile()(*arrays), expected, rtol, 0, form)


@pytest.mark.parametrize(("sizes", "kernel"), [((9, 14), (4, 4)), ((33,), (10,)), ((5, 6, 9), (2, 3, 4))])
def test_narrow_pieces_of_one_channel_are_rows_of_a_product(sizes, kernel, rng, quick_compilation):
    arrays = [jnp.asarray(rng.standard_normal(shape)) for shape in ((3, 1, *sizes), (5, 1, *kernel), (5,))]
    slopes = _slopes(FUNCTIONS[len(sizes)], stride=kernel)
    call = jax.jit(slopes).lower(*arrays)
    assert set(re.findall(r"jnn_conv\w*", call.as_text())) == {"jnn_conv_by_input"}
    assert "jnn_linear" in call.as_text()
    with lowering(native=True):
        expected = quick_jit(lambda *arrays: slopes(*arrays))(*arrays)
    same(call.compile()(*arrays), expected, 1e-11, 0)


def test_a_winograd_convolution_errs_no_more_than_xlas(rng, monkeypatch):
    monkeypatch.setattr(convolution, "LIBRARY_FORM", "winograd")
    x, w = rng.standard_normal((2, 64, 16, 16)), rng.standard_normal((64, 64, 3, 3)) / 24
    errors = []
    for native in (False, True):
        jax.clear_caches()
        with lowering(native=native):
            y = F.conv2d(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), padding=1)
            errors.append(np.abs(np.asarray(y, np.float64) - np.asarray(F.conv2d(x, w, padding=1))).max())
    assert errors[0] < 2 * errors[1]


def test_exact_products_are_the_users_choice(rng):
    x, w = jnp.zeros((2, 64, 32, 32), jnp.float32), jnp.zeros((64, 64, 3, 3), jnp.float32)
    call = jax.jit(lambda x, w: F.conv2d(x, w, padding=1))
    assert "exact = false" in call.lower(x, w).as_text()
    with jax.default_matmul_precision("highest"):
        assert "exact = true" in call.lower(x, w).as_text()


def test_what_the_library_has_not_is_left_to_xla(rng):
    x, w = jnp.asarray(rng.standard_normal((2, 4, 9, 9)), jnp.complex64), jnp.asarray(rng.standard_normal((4, 4, 3, 3)), jnp.complex64)
    assert "jnn_conv" not in jax.jit(F.conv2d).lower(x, w).as_text()
    assert "jnn_conv" in jax.jit(F.conv2d).lower(x.real, w.real).as_text()
    assert "jnn_conv" not in jax.jit(F.conv2d).lower(x.real[..., :3, :3], w.real).as_text()  # A matmul.
    exported = jax.export.export(jax.jit(F.conv2d))(x.real, w.real)
    assert "jnn_conv" not in exported.mlir_module()


def test_partitioned_programs_are_left_to_xla(rng):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = jnp.asarray(rng.standard_normal((8, 4, 9, 9)), jnp.float32), jnp.asarray(rng.standard_normal((4, 4, 3, 3)), jnp.float32)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("d")))
    assert "jnn_conv" not in jax.jit(F.conv2d).lower(sharded, w).as_text()
    np.testing.assert_allclose(jax.jit(F.conv2d)(sharded, w), F.conv2d(x, w), rtol=1e-4, atol=1e-4)
    for check in (True, False):
        each = jax.jit(jax.shard_map(F.conv2d, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P("d"), check_vma=check))
        assert "jnn_conv" in each.lower(x, w).as_text()
        np.testing.assert_allclose(each(x, w), F.conv2d(x, w), rtol=1e-4, atol=1e-4)


def test_results_do_not_depend_on_the_number_of_threads():
    # The second's columns are shared out by outputs or, of more threads, by places.
    script = """
import jax, jax.numpy as jnp, numpy as np, hashlib, jnn.functional as F
rng, seen = np.random.default_rng(0), hashlib.sha256()
for n, channels, size, outputs in ((4, 20, 24, 40), (1, 40, 16, 5)):
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((n, channels, size, size), (outputs, channels, 3, 3)))
    y, pull = jax.vjp(lambda x, w: F.conv2d(x, w, padding=1), x, w)
    for a in (y, *pull(y)):
        seen.update(np.asarray(a).tobytes())
print(seen.hexdigest())
"""
    found = {
        subprocess.run([sys.executable, "-c", script], env=os.environ | {"NPROC": n}, check=True, capture_output=True).stdout for n in "12"
    }
    assert len(found) == 1


@pytest.mark.parametrize("level", ["0", "x86-64-v3"])
def test_levels_of_the_library(level):
    script = """
import jax.numpy as jnp, numpy as np, jnn.functional as F
from jnn.kernels import library
print(library.loaded() is not None)
rng = np.random.default_rng(0)
x, w = jnp.asarray(rng.standard_normal((2, 20, 12, 13)), jnp.float32), jnp.asarray(rng.standard_normal((17, 20, 3, 3)), jnp.float32)
np.testing.assert_allclose(F.conv2d(x, w, padding=1), F.conv2d(np.float64(x), np.float64(w), padding=1), rtol=1e-4, atol=1e-4)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"JNN_LIBRARY": level}, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == str(level != "0" and library.found(level) is not None)
