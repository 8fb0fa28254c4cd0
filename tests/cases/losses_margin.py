import numpy as np

from . import Case, ints, normal, value

WEIGHT = np.array([0.5, 1.0, 2.0], np.float32)
SIGNS = value(np.array([1, -1, -1, 1]))
LISTED = value(np.array([[0, 2, -1, 1], [1, -1, 3, 3], [3, 0, 3, 2], [-1, 0, 1, 2]]))

CASES = [
    Case("HingeEmbeddingLoss", inputs=(normal(4), SIGNS)),
    Case("HingeEmbeddingLoss", (0.5,), {"reduction": "none"}, inputs=(normal(4), SIGNS)),
    Case("SoftMarginLoss", inputs=(normal(4), SIGNS)),
    Case("SoftMarginLoss", kwargs={"reduction": "none"}, inputs=(normal(4), SIGNS)),
    Case("MarginRankingLoss", inputs=(normal(4), normal(4), SIGNS)),
    Case("MarginRankingLoss", (0.5,), {"reduction": "none"}, inputs=(normal(4), normal(4), SIGNS)),
    Case("CosineEmbeddingLoss", inputs=(normal(4, 3), normal(4, 3), SIGNS)),
    Case("CosineEmbeddingLoss", (-0.5,), {"reduction": "none"}, inputs=(normal(4, 3), normal(4, 3), SIGNS)),
    Case("CosineEmbeddingLoss", kwargs={"reduction": "sum"}, inputs=(normal(3), normal(3), value(np.array(-1)))),
    Case("MultiMarginLoss", inputs=(normal(4, 3), ints(3, 4))),
    Case("MultiMarginLoss", (2, 0.5, WEIGHT), {"reduction": "none"}, inputs=(normal(4, 3), ints(3, 4))),
    Case("MultiMarginLoss", kwargs={"reduction": "sum"}, inputs=(normal(3), ints(3))),
    Case("MultiLabelMarginLoss", inputs=(normal(4, 4), LISTED)),
    Case("MultiLabelMarginLoss", kwargs={"reduction": "none"}, inputs=(normal(4, 4), LISTED)),
    Case("MultiLabelMarginLoss", inputs=(normal(3), value(np.array([2, -1, 0])))),
    Case("TripletMarginLoss", inputs=(normal(4, 3), normal(4, 3), normal(4, 3))),
    Case("TripletMarginLoss", (2.0, 1.0), {"swap": True, "reduction": "none"}, inputs=(normal(4, 3), normal(4, 3), normal(4, 3))),
    Case("TripletMarginLoss", kwargs={"p": 3.0, "eps": 1e-3, "reduction": "sum"}, inputs=(normal(3), normal(3), normal(3))),
    Case("TripletMarginWithDistanceLoss", inputs=(normal(4, 3), normal(4, 3), normal(4, 3))),
    Case(
        "TripletMarginWithDistanceLoss",
        kwargs={"distance_function": Case("PairwiseDistance", (1.0,)), "margin": 2.0, "swap": True, "reduction": "none"},
        inputs=(normal(4, 3), normal(4, 3), normal(4, 3)),
    ),
]
