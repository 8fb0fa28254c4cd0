from . import Case, normal

CASES = [
    Case("PairwiseDistance", inputs=(normal(3, 4), normal(3, 4))),
    Case("PairwiseDistance", (1.0, 1e-3, True), inputs=(normal(3, 4), normal(4))),
    Case("PairwiseDistance", (3.5,), inputs=(normal(4), normal(4))),
    Case("PairwiseDistance", (float("inf"),), inputs=(normal(3, 4), normal(3, 4))),
    Case("CosineSimilarity", inputs=(normal(3, 4), normal(3, 4))),
    Case("CosineSimilarity", (0, 1e-3), inputs=(normal(3, 4), normal(3, 1))),
]
