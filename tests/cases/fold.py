from . import Case, normal

CASES = [
    Case("Unfold", (2,), inputs=(normal(2, 2, 3, 4),)),
    Case("Unfold", ((3, 2),), {"dilation": (1, 2), "padding": (1, 2), "stride": (2, 1)}, inputs=(normal(2, 5, 4),)),
    Case("Fold", ((3, 4), 2), inputs=(normal(2, 8, 6),)),
    Case("Fold", (5, (3, 2)), {"dilation": (1, 2), "padding": (1, 2), "stride": 2}, inputs=(normal(12, 12),)),
]
