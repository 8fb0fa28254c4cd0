import numpy as np

from . import Case, normal, value

# Without samples these layers draw in evaluation too: tests/test_pooling.py.
SAMPLES = np.array([[[0.1, 0.9, 0.5], [0.6, 0.3, 0.2]]], np.float32)
INDICES = np.array([[[[0, 3], [9, 14]]]])

CASES = [
    Case("MaxPool1d", (3, 2, 1), inputs=(normal(2, 3, 7),)),
    Case("MaxPool1d", (2,), {"dilation": 3, "return_indices": True}, inputs=(normal(2, 9),)),
    Case("MaxPool2d", (2,), inputs=(normal(2, 3, 6, 6),)),
    Case("MaxPool2d", (3, 2, 1), {"ceil_mode": True}, inputs=(normal(1, 2, 6, 7),)),
    Case("MaxPool2d", ((3, 2), (2, 1), (1, 0), (1, 2)), {"return_indices": True}, inputs=(normal(2, 6, 7),)),
    Case("MaxPool3d", (2,), {"padding": 1, "return_indices": True}, inputs=(normal(1, 2, 4, 3, 5),)),
    Case("AvgPool1d", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False}, inputs=(normal(2, 3, 6),)),
    Case("AvgPool2d", (2,), inputs=(normal(2, 3, 6, 6),)),
    Case("AvgPool2d", ((3, 2), 2, 1, True), inputs=(normal(2, 6, 7),)),
    Case("AvgPool2d", (2, 1), {"divisor_override": 3}, inputs=(normal(1, 2, 3, 4),)),
    Case("AvgPool3d", (2, 2, 1, True, False), inputs=(normal(1, 2, 3, 4, 5),)),
    Case("LPPool1d", (2, 3), inputs=(normal(2, 3, 7),)),
    Case("LPPool2d", (2, 2, 1, True), inputs=(normal(2, 3, 4),)),
    Case("LPPool2d", (float("inf"), 2), inputs=(normal(1, 2, 4, 5),)),
    Case("LPPool3d", (2.0, 2), inputs=(normal(1, 2, 3, 4, 5),)),
    Case("AdaptiveMaxPool1d", (3,), {"return_indices": True}, inputs=(normal(2, 3, 7),)),
    Case("AdaptiveMaxPool2d", ((3, None),), inputs=(normal(2, 5, 4),)),
    Case("AdaptiveMaxPool3d", (2,), {"return_indices": True}, inputs=(normal(1, 2, 4, 3, 5),)),
    Case("AdaptiveAvgPool1d", (5,), inputs=(normal(2, 3),)),
    Case("AdaptiveAvgPool2d", ((2, 3),), inputs=(normal(2, 3, 6, 6),)),
    Case("AdaptiveAvgPool2d", ((3, None),), inputs=(normal(1, 2, 5, 4),)),
    Case("AdaptiveAvgPool3d", (2,), inputs=(normal(1, 2, 4, 3, 5),)),
    Case("FractionalMaxPool2d", (2, 3), {"_random_samples": SAMPLES[..., :2], "return_indices": True}, inputs=(normal(1, 2, 6, 7),)),
    Case("FractionalMaxPool2d", ((2, 3),), {"output_ratio": (0.5, 0.6), "_random_samples": SAMPLES[..., 1:]}, inputs=(normal(2, 6, 7),)),
    Case("FractionalMaxPool3d", (2, (2, 1, 3)), {"_random_samples": SAMPLES}, inputs=(normal(1, 2, 5, 4, 6),)),
    Case("MaxUnpool1d", (2,), inputs=(normal(1, 2, 2), value(np.array([[[0, 3], [1, 2]]])))),
    Case("MaxUnpool2d", (2,), inputs=(normal(1, 1, 2, 2), value(INDICES))),
    Case("MaxUnpool2d", (3, 2, 1), inputs=(normal(1, 2, 2), value(INDICES[0])), call={"output_size": value((4, 4))}),
    Case("MaxUnpool3d", (2,), inputs=(normal(1, 1, 1, 2, 2), value(INDICES[None]))),
]
