"""What the table cannot say about losses: deprecated arguments, refusals, edges, traced targets."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as T

import jnn
import jnn.functional as F

from .oracle import quick_jit

pytestmark = pytest.mark.usefixtures("quick_compilation")

INF, NAN = np.inf, np.nan


def both(name, arrays, differentiate=(0,), **kwargs):
    """Values and gradients of a function here and in torch, in float32."""
    floats = [np.asarray(a, np.float32) if np.asarray(a).dtype.kind == "f" else np.asarray(a) for a in arrays]
    tensors = [torch.tensor(a, requires_grad=i in differentiate) for i, a in enumerate(floats)]
    theirs = getattr(T, name)(*tensors, **{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()})
    grads = torch.autograd.grad(theirs.sum(), [tensors[i] for i in differentiate])

    def mine(*xs):
        return getattr(F, name)(*xs, **kwargs)

    arrays = [jnp.asarray(a) for a in floats]
    found = jax.grad(lambda *xs: mine(*xs).sum(), differentiate)(*arrays)
    return (mine(*arrays), *found), tuple(t.detach().numpy() for t in (theirs, *grads))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"size_average": False}, "sum"),
        ({"reduce": False}, "none"),
        ({"size_average": True}, "mean"),
        ({"size_average": False, "reduce": False}, "none"),
    ],
)
def test_deprecated_arguments_win_and_warn_every_time(old, new):
    x, y = jnp.arange(3.0), jnp.ones(3)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"reduction='{new}'") as found:
            np.testing.assert_array_equal(F.mse_loss(x, y, reduction="sum", **old), F.mse_loss(x, y, reduction=new))
        assert found[0].filename == __file__
    with pytest.warns(UserWarning, match=f"reduction='{new}'"):
        assert jnn.MSELoss(**old).reduction == new
    with pytest.warns(UserWarning, match="elementwise_mean"):
        F.mse_loss(x, y, reduction="elementwise_mean")


def test_warnings_are_torchs():
    x, y = jnp.zeros((2, 3)), jnp.ones((2, 3))
    for _ in range(2):
        with pytest.warns(UserWarning, match="broadcast"):
            F.smooth_l1_loss(x, y[:1])
        with pytest.warns(UserWarning, match="batchmean"):
            F.kl_div(x, y)
    with pytest.warns(FutureWarning, match="NLLLoss2d"):
        jnn.NLLLoss2d()


X, C = jnp.zeros((2, 3)), jnp.array([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jnn.L1Loss(reduction="men"), ValueError, "reduction must be one of"),
        (lambda: F.kl_div(X, X, reduction="men"), ValueError, "reduction must be one of 'none', 'mean', 'sum', 'batchmean'"),
        (lambda: F.mse_loss(X, X, reduction="batchmean"), ValueError, "reduction must be one of"),
        (lambda: F.mse_loss(X, X, weight=X[0]), ValueError, "weight must have the shape of input"),
        (lambda: F.huber_loss(X, X, delta=0), RuntimeError, "delta must be positive"),
        (lambda: jnn.HuberLoss(delta="1"), TypeError, "delta must be a number"),
        (lambda: F.smooth_l1_loss(X, X, beta=-1), RuntimeError, "beta must not be negative"),
        (lambda: F.poisson_nll_loss(X, jnp.zeros(2)), RuntimeError, "must broadcast"),
        (lambda: F.gaussian_nll_loss(X, X, -1.0), ValueError, "var must not be negative"),
        (lambda: F.gaussian_nll_loss(X, X, jnp.ones(3)), ValueError, "var must have the shape of input"),
        (lambda: F.nll_loss(X, jnp.array([0, 3])), IndexError, r"target must be in \[0, 2\], got target=3"),
        (lambda: F.cross_entropy(X, jnp.array([0, -1])), IndexError, r"target must be in \[0, 2\], got target=-1"),
        (lambda: F.nll_loss(X, jnp.zeros(2)), RuntimeError, "integer class indices"),
        (lambda: F.nll_loss(X, jnp.array([0])), ValueError, "one batch size"),
        (lambda: F.nll_loss(jnp.zeros((2, 3, 4)), jnp.zeros((2, 5), int)), RuntimeError, r"target must have shape \(2, 4\)"),
        (lambda: F.nll_loss(X, C, jnp.ones(2)), RuntimeError, "one element per class"),
        (lambda: F.nll_loss(jnp.zeros(()), jnp.array(0)), ValueError, "at least one dimension"),
        (lambda: F.cross_entropy(X, X.astype(int)), RuntimeError, "floating point probabilities"),
        (lambda: F.cross_entropy(X, X, ignore_index=1), RuntimeError, "cannot be ignored"),
        (lambda: F.cross_entropy(X, C, label_smoothing=1.5), RuntimeError, r"label_smoothing must be in \[0, 1\]"),
        (lambda: jnn.CrossEntropyLoss(weight=[1.0, 2.0]), TypeError, "weight must be an array or None"),
        (lambda: F.binary_cross_entropy(X - 1, X), RuntimeError, r"input must be in \[0, 1\]"),
        (lambda: F.binary_cross_entropy(X, X + NAN), RuntimeError, r"target must be in \[0, 1\]"),
        (lambda: F.binary_cross_entropy(X, X[0]), ValueError, "one shape"),
        (lambda: F.binary_cross_entropy_with_logits(X, X, pos_weight=jnp.ones((4, 2, 3))), RuntimeError, "pos_weight must broadcast"),
        (lambda: F.margin_ranking_loss(X, X[0], X), RuntimeError, "one number of dimensions"),
        (lambda: F.cosine_embedding_loss(X, X, X), RuntimeError, "target must be 0D or 1D"),
        (lambda: F.multi_margin_loss(X, jnp.array([0, 3])), RuntimeError, r"target must be in \[0, 2\]"),
        (lambda: jnn.MultiMarginLoss(p=3), ValueError, "p must be 1 or 2"),
        (lambda: jnn.MultiMarginLoss(weight=np.ones((1, 3), np.float32)), ValueError, "one-dimensional"),
        (lambda: F.multilabel_margin_loss(X, jnp.full((2, 3), -2)), RuntimeError, "target must be in"),
        (lambda: F.triplet_margin_loss(X, X, X, margin=0), ValueError, "margin must be positive"),
        (lambda: jnn.TripletMarginWithDistanceLoss(margin=-1.0), ValueError, "margin must be positive"),
        (lambda: F.linear_cross_entropy(X, X, C + 1), IndexError, r"target must be in \[0, 1\]"),
        (lambda: F.linear_cross_entropy(X, jnp.zeros((4, 2)), C), RuntimeError, "last dimensions"),
        (lambda: jnn.LinearCrossEntropyLoss(3, 4, weight=np.ones(3, np.float32)), RuntimeError, "one element per class"),
        (lambda: jnn.LinearCrossEntropyOptions(chunking_method="aspect_ratio:0"), ValueError, "chunking_method"),
        (lambda: jnn.AdaptiveLogSoftmaxWithLoss(4, 5, [3, 2]), ValueError, "cutoffs must be increasing"),
        (lambda: jnn.AdaptiveLogSoftmaxWithLoss(4, 5, [2])(jnp.zeros((1, 4)), jnp.array([5])), RuntimeError, r"target must be in \[0, 4\]"),
    ],
)
def test_refusals(call, error, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, t: F.nll_loss(x, t),
        lambda x, t: F.cross_entropy(x, t, jnp.ones(3, x.dtype)),
        lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
        lambda x, t: F.multi_margin_loss(x, t),
        lambda x, t: F.multilabel_margin_loss(x, jnp.stack([t, t, t], 1)),
        lambda x, t: F.linear_cross_entropy(x, jnp.eye(3, dtype=x.dtype), t, options=jnn.LinearCrossEntropyOptions(batch_chunk_size=1)),
        lambda x, t: jnn.pure(ADAPTIVE).apply(*jnn.split(ADAPTIVE), x, t)[0].loss,
    ],
)
@pytest.mark.parametrize("bad", [3, -2])
def test_a_traced_target_out_of_range_gives_nan(loss, bad):
    x = jnp.ones((2, 3), jnp.float32)
    assert np.isfinite(jax.jit(loss)(x, jnp.array([0, 1])))
    value, grad = jax.jit(jax.value_and_grad(loss))(x, jnp.array([0, bad]))
    assert np.isnan(value)
    assert np.isnan(grad[1]).any()


ADAPTIVE = jnn.AdaptiveLogSoftmaxWithLoss(3, 3, [1])


@pytest.mark.parametrize(
    ("name", "arrays", "kwargs"),
    [
        ("binary_cross_entropy", ([0.0, 1.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 0.0, 0.3]), {}),
        ("binary_cross_entropy_with_logits", ([1e4, -1e4, 1e4, INF, -INF, 0.0], [0.0, 1.0, 1.0, 1.0, 0.0, 0.5]), {}),
        ("binary_cross_entropy_with_logits", ([1e4, -1e4, 1e4, 0.0], [0.0, 1.0, 1.0, 0.5]), {"pos_weight": np.float32([2])}),
        ("cross_entropy", ([[1e5, -1e5, 0.0], [-INF, 0.0, 1.0]], [0, 1]), {}),
        ("cross_entropy", ([[1.0, 2.0], [3.0, 4.0]], [-100, -100]), {"label_smoothing": 0.1}),
        ("cross_entropy", ([[1.0, 2.0], [NAN, 4.0]], [0, -100]), {}),
        ("nll_loss", ([[-1.0, -INF], [-2.0, -1.0]], [1, 0]), {}),
        ("nll_loss", ([[-1.0, -INF], [-2.0, -1.0]], [-100, 0]), {"weight": np.float32([0, 1])}),
        ("gaussian_nll_loss", ([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, INF], [0.0, 1e-9, INF, 1.0]), {}),
        ("poisson_nll_loss", ([1.0, -INF, 100.0], [0.0, 1.0, 2.0]), {"full": True}),
        ("kl_div", ([-1.0, -2.0, -INF], [0.0, 1.0, 0.5]), {}),
        ("huber_loss", ([1.0, INF, NAN, 3.0], [1.0, 0.0, 0.0, 2.0]), {}),
        ("smooth_l1_loss", ([1.0, INF, -INF, 3.0], [1.0, 0.0, 0.0, 2.0]), {"beta": 0.5}),
        ("l1_loss", ([1.0, INF], [1.0, 0.0]), {}),
        ("hinge_embedding_loss", ([0.5, 1.0, 2.0, 0.5], [1, -1, -1, 0]), {}),
        ("margin_ranking_loss", ([1.0, 1.0], [1.0, 1.0], [1, -1]), {}),
        ("cosine_embedding_loss", ([[0.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [1.0, 2.0]], [1, -1]), {}),
        ("multi_margin_loss", ([[1.0, 1.5, INF]], [1]), {"margin": 0.5}),
        ("triplet_margin_loss", ([[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]), {"swap": True}),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_edges_are_torchs(name, arrays, kwargs, reduction):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, theirs = both(name, arrays, reduction=reduction, **kwargs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_of_binary_targets_is_torchs_and_forward_mode_is_finite():
    x, y = [0.0, 1.0, 0.25], [0.0, 0.5, 0.5]
    mine, theirs = both("binary_cross_entropy", (x, y), (0, 1), reduction="none")
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    tangent = jax.jvp(lambda x: F.binary_cross_entropy(x, jnp.array(y)), (jnp.array(x),), (jnp.ones(3),))[1]
    assert np.isfinite(tangent)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy", "mse_loss", "binary_cross_entropy", "multi_margin_loss", "kl_div"])
def test_empty_batches(name, reduction):
    classes = name in ("nll_loss", "cross_entropy", "multi_margin_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = getattr(F, name)(jnp.zeros((0, 3)), jnp.zeros(0, int) if classes else jnp.zeros((0, 3)), reduction=reduction)
    if reduction == "none":
        assert out.size == 0
    else:
        np.testing.assert_array_equal(out, NAN if reduction == "mean" else 0)


def test_better_than_torch_where_torch_overflows():
    x = jnp.array([-200.0, 200.0])
    np.testing.assert_allclose(F.soft_margin_loss(x, jnp.ones(2), reduction="none"), [200, 0], atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: F.soft_margin_loss(x, jnp.ones(2), reduction="sum"))(x), [-1, 0], atol=1e-6)
    grad = jax.grad(lambda y: F.kl_div(jnp.array([-1.0]), y, reduction="sum"))(jnp.zeros(1))
    np.testing.assert_array_equal(grad, [1])


def test_half_types_sum_in_float32():
    x = jnp.full(4096, 1.0, jnp.float16)
    assert F.mse_loss(x, x * 0, reduction="sum") == 4096
    logits = jnp.zeros((1, 4096), jnp.float16)
    np.testing.assert_allclose(F.cross_entropy(logits, jnp.array([0])), np.log(4096), rtol=1e-3)


def test_any_distance_function():
    a, b, c = jax.random.normal(jax.random.key(0), (3, 4, 5))
    expected = torch.nn.TripletMarginWithDistanceLoss(distance_function=lambda x, y: (x - y).abs().sum(-1), swap=True)
    theirs = expected(*(torch.tensor(np.asarray(x)) for x in (a, b, c)))
    loss = jnn.TripletMarginWithDistanceLoss(distance_function=lambda x, y: jnp.abs(x - y).sum(-1), swap=True)
    np.testing.assert_allclose(loss(a, b, c), theirs, rtol=1e-5)

    class Scaled(jnn.Module):
        def __init__(self):
            super().__init__()
            self.scale = jnn.Parameter(jnp.ones(()))

        def forward(self, x, y):
            return self.scale * jnp.abs(x - y).sum(-1)

    learned = jnn.TripletMarginWithDistanceLoss(distance_function=Scaled(), swap=True)
    assert [*learned.state_dict()] == ["distance_function.scale"]
    np.testing.assert_allclose(learned(a, b, c), theirs, rtol=1e-5)
    params, buffers = jnn.split(learned)
    assert jax.grad(lambda p: jnn.pure(learned).apply(p, buffers, a, b, c)[0])(params)["distance_function"]["scale"] != 0


def test_adaptive_softmax_is_one_distribution():
    torch.manual_seed(0)
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6], div_value=2.0, head_bias=True)
    mine = jnn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6], div_value=2.0, head_bias=True)
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    expected = theirs.log_prob(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(mine.log_prob(jnp.asarray(x)), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(expected).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(mine.predict(jnp.asarray(x)), theirs.predict(torch.tensor(x)))
    layer = jnn.losses.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6], 2.0, True)
    np.testing.assert_allclose(layer.log_prob(*jnn.split(mine), jnp.asarray(x)), expected, rtol=1e-5)
    np.testing.assert_array_equal(layer.predict(*jnn.split(mine), jnp.asarray(x)), mine.predict(jnp.asarray(x)))
    out = mine(jnp.asarray(x), jnp.arange(16) % 12)
    assert out._fields == ("output", "loss")
    np.testing.assert_allclose(out.output, expected[np.arange(16), np.arange(16) % 12], rtol=1e-5)
    before = mine.tail[0][0].weight.detach()
    mine.reset_parameters()
    assert not np.array_equal(before, mine.tail[0][0].weight)


OPTIONS = [
    None,
    jnn.LinearCrossEntropyOptions(batch_chunk_size=3),
    jnn.LinearCrossEntropyOptions(chunking_method="aspect_ratio:2"),
    jnn.LinearCrossEntropyOptions(batch_chunk_size=1),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_chunks_change_nothing(options, reduction, kind):
    """Values, gradients in all operands, forward mode and second order equal those of the plain form."""
    rng = np.random.default_rng(0)
    x, w, b, weight = (jnp.asarray(rng.standard_normal(s)) for s in [(7, 4), (5, 4), (5,), (5,)])
    target = jnp.array([0, 1, -100, 4, 2, 2, 3]) if kind == "indices" else jnp.asarray(rng.dirichlet(np.ones(5), 7))

    def chunked(x, w, b, weight):
        out = F.linear_cross_entropy(x, w, target, linear_bias=b, weight=weight, reduction=reduction, label_smoothing=0.1, options=options)
        return jnp.sum(jnp.sin(out))

    def plain(x, w, b, weight):
        return jnp.sum(jnp.sin(F.cross_entropy(F.linear(x, w, b), target, weight, reduction=reduction, label_smoothing=0.1)))

    operands, every = (x, w, b, weight), (0, 1, 2, 3)
    ones = tuple(map(jnp.ones_like, operands))
    for transform in (
        lambda f: f,
        lambda f: jax.grad(f, every),
        jax.grad,
        lambda f: lambda *a: jax.jvp(f, a, ones)[1],
        lambda f: lambda *a: jax.jvp(jax.grad(f, every), a, ones)[1],
        lambda f: jax.grad(lambda *a: jax.grad(f)(*a).sum(), every),
    ):
        got, expected = (quick_jit(transform(f))(*operands) for f in (chunked, plain))
        jax.tree.map(lambda m, p: np.testing.assert_allclose(m, p, rtol=1e-8, atol=1e-10), got, expected)


def test_the_logits_are_never_whole():
    """The compiled step of many rows needs a small part of the memory of all logits."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(4096, 16), (8192, 16)]]
    target = jax.ShapeDtypeStruct((4096,), jnp.int32)

    def loss(x, w, t):
        return F.linear_cross_entropy(x, w, t, options=jnn.LinearCrossEntropyOptions(batch_chunk_size=64))

    step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes, target).compile()
    assert step.memory_analysis().temp_size_in_bytes < 4096 * 8192 * 4 / 8
