import numpy as np

import jnn

from . import Case, ints, normal, uniform

WEIGHT = np.array([0.5, 1.0, 2.0], np.float32)
PAIRS = jnn.LinearCrossEntropyOptions(batch_chunk_size=2)

CASES = [
    Case("AdaptiveLogSoftmaxWithLoss", (8, 12, [3, 6]), {"div_value": 2.0}, inputs=(normal(5, 8), ints(12, 5))),
    Case("AdaptiveLogSoftmaxWithLoss", (8, 12, (5,)), {"head_bias": True}, inputs=(normal(8), ints(12))),
    Case("LinearCrossEntropyLoss", (4, 3), inputs=(normal(5, 4), ints(3, 5))),
    Case("LinearCrossEntropyLoss", (4, 3), {"bias": True, "reduction": "none"}, inputs=(normal(4), ints(3))),
    Case(
        "LinearCrossEntropyLoss",
        (4, 3),
        {"out_features": (2,), "reduction": "sum", "label_smoothing": 0.1},
        inputs=(normal(5, 4), ints(3, 5, 2)),
    ),
    Case("LinearCrossEntropyLoss", (4, 3), {"weight": WEIGHT}, inputs=(normal(5, 4), uniform(5, 3))),
]
