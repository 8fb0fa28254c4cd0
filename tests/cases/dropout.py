from . import Case, normal

CASES = [
    Case("Dropout", inputs=(normal(3, 4),), random=True),
    Case("Dropout", (0.2,), inputs=(normal(5),), random=True),
    Case("Dropout", (0.0,), inputs=(normal(3, 4),)),
    Case("Dropout", (1.0,), inputs=(normal(3, 4),)),
    Case("Dropout1d", (0.3,), inputs=(normal(2, 3, 4),), random=True),
    Case("Dropout1d", inputs=(normal(3, 4),), random=True),
    Case("Dropout2d", (0.3,), inputs=(normal(2, 3, 2, 2),), random=True),
    Case("Dropout3d", (0.3,), inputs=(normal(2, 3, 2, 2, 1),), random=True),
    Case("Dropout3d", inputs=(normal(3, 2, 2, 1),), random=True),
    Case("AlphaDropout", (0.3,), inputs=(normal(3, 4),), random=True),
    Case("FeatureAlphaDropout", (0.3,), inputs=(normal(2, 3, 4),), random=True),
]
