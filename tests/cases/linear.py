from . import Case, normal

CASES = [
    Case("Linear", (4, 3), inputs=(normal(2, 4),)),
    Case("Linear", (4, 3), {"bias": False}, inputs=(normal(4),)),
    Case("Linear", (4, 3), inputs=(normal(2, 5, 4),)),
    Case("Bilinear", (2, 3, 4), inputs=(normal(2, 2), normal(2, 3))),
    Case("Bilinear", (2, 3, 4), {"bias": False}, inputs=(normal(2), normal(3))),
    Case("Identity", inputs=(normal(2, 3),)),
]
