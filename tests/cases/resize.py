from . import Case, normal

CASES = [
    Case("Upsample", (5,), inputs=(normal(2, 2, 4),)),
    Case("Upsample", (), {"scale_factor": 2}, inputs=(normal(1, 2, 2, 3),)),
    Case("Upsample", ((3, 2, 2),), {"mode": "nearest-exact"}, inputs=(normal(1, 2, 2, 3, 3),)),
    Case("Upsample", (), {"scale_factor": 1.6, "mode": "linear"}, inputs=(normal(2, 2, 4),)),
    Case("Upsample", (), {"scale_factor": (1.6, 0.7), "mode": "bilinear", "recompute_scale_factor": True}, inputs=(normal(1, 2, 4, 5),)),
    Case("Upsample", ((3, 7),), {"mode": "bicubic", "align_corners": True}, inputs=(normal(1, 2, 4, 5),)),
    Case("Upsample", ((2, 3, 4),), {"mode": "trilinear", "align_corners": False}, inputs=(normal(1, 2, 3, 2, 3),)),
    Case("Upsample", ((3, 2),), {"mode": "area"}, inputs=(normal(1, 2, 4, 5),)),
    Case("UpsamplingNearest2d", (), {"scale_factor": (2, 1.5)}, inputs=(normal(1, 2, 2, 3),)),
    Case("UpsamplingBilinear2d", ((4, 5),), inputs=(normal(1, 2, 2, 3),)),
]
