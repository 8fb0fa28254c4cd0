import numpy as np

from . import Case, ints, normal, value

TABLE = np.random.default_rng(0).standard_normal((6, 3))
BAGS = value(np.array([0, 0, 2, 7, 8]))  # the first bag and, below, the one after the last index are empty
FROZEN = "a frozen table: nothing is differentiated"

CASES = [
    Case("Embedding", (7, 3), inputs=(ints(7, 2, 4),)),
    Case("Embedding", (7, 3), inputs=(ints(7),)),
    Case("Embedding", (7, 3, 2), inputs=(value(np.array([1, 2, 2, 6])),)),
    Case("Embedding", (7, 3), {"padding_idx": -1, "scale_grad_by_freq": True}, (value(np.array([[1, 6], [1, 0], [1, 0]])),)),
    Case("Embedding", (6, 3), {"_weight": TABLE, "max_norm": 1.0, "norm_type": 1.0}, (ints(6, 5),)),
    Case("Embedding", (6, 3), {"_weight": TABLE, "_freeze": True, "sparse": True}, (ints(6, 5),), unlike={"second_order": FROZEN}),
    *(Case("EmbeddingBag", (7, 3), {"mode": mode}, (ints(7, 4, 3),)) for mode in ("sum", "mean", "max")),
    *(Case("EmbeddingBag", (7, 3), {"mode": mode, "padding_idx": 2}, (ints(4, 8), BAGS)) for mode in ("sum", "mean", "max")),
    Case("EmbeddingBag", (7, 3), {"mode": "max", "padding_idx": -7}, (ints(2, 3, 2),)),
    Case("EmbeddingBag", (7, 3), {"include_last_offset": True}, (ints(7, 8), BAGS)),
    Case("EmbeddingBag", (7, 3), {"mode": "sum"}, (ints(7, 8), BAGS, normal(8))),
    Case("EmbeddingBag", (7, 3), {"mode": "sum", "padding_idx": 1}, (ints(3, 2, 4), value(None), normal(2, 4))),
    Case("EmbeddingBag", (7, 3), {"scale_grad_by_freq": True}, (value(np.array([0, 1, 2, 3, 3, 2, 1, 0])), BAGS)),
    Case("EmbeddingBag", (6, 3), {"_weight": TABLE, "max_norm": 1.0, "norm_type": 3.0}, (ints(6, 2, 4),)),
]
