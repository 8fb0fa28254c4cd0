import numpy as np

from . import Case, normal, value

CAUSAL = ~np.tri(3, dtype=bool)
PADDED = np.array([[False, False, True], [False, False, False]])

CASES = [
    Case("MultiheadAttention", (4, 2), inputs=(normal(3, 2, 4), normal(5, 2, 4), normal(5, 2, 4))),
    Case(
        "MultiheadAttention",
        (4, 2),
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        inputs=(normal(2, 3, 4), normal(2, 3, 4), normal(2, 3, 4)),
        call={"key_padding_mask": value(PADDED), "average_attn_weights": value(False)},
    ),
    Case(
        "MultiheadAttention",
        (4, 2),
        {"kdim": 3, "vdim": 5, "bias": False},
        inputs=(normal(3, 2, 4), normal(3, 2, 3), normal(3, 2, 5)),
        call={"attn_mask": value(CAUSAL), "need_weights": value(False), "is_causal": value(True)},
    ),
    Case(
        "MultiheadAttention",
        (4, 1),
        inputs=(normal(3, 4), normal(5, 4), normal(5, 4)),
        call={"attn_mask": normal(1, 3, 5), "need_weights": value(False)},
    ),
    Case("MultiheadAttention", (4, 2), {"dropout": 0.5}, inputs=(normal(3, 2, 4), normal(3, 2, 4), normal(3, 2, 4)), random=True),
]
