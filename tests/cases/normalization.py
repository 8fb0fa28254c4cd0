from . import Case, normal

CASES = [
    Case("BatchNorm1d", (3,), inputs=(normal(4, 3),)),
    Case("BatchNorm1d", (3,), {"affine": False}, inputs=(normal(2, 3, 4),)),
    Case("BatchNorm1d", (3,), {"momentum": None}, inputs=(normal(2, 3, 4),)),
    Case("BatchNorm1d", (3,), {"track_running_stats": False, "bias": False}, inputs=(normal(4, 3),)),
    Case("BatchNorm2d", (3, 1e-3, 0.3), inputs=(normal(2, 3, 2, 3),)),
    Case("BatchNorm3d", (2,), inputs=(normal(2, 2, 2, 1, 3),)),
    Case("SyncBatchNorm", (3,), inputs=(normal(4, 3),)),
    Case("InstanceNorm1d", (3,), inputs=(normal(3, 4),)),
    Case("InstanceNorm1d", (3,), {"affine": True, "track_running_stats": True}, inputs=(normal(2, 3, 4),)),
    Case("InstanceNorm2d", (3,), {"affine": True, "bias": False}, inputs=(normal(2, 3, 2, 3),)),
    Case("InstanceNorm3d", (2,), {"track_running_stats": True, "momentum": None}, inputs=(normal(2, 2, 2, 1, 3),)),
    Case("LayerNorm", (6,), inputs=(normal(2, 3, 6),)),
    Case("LayerNorm", ((2, 3), 1e-3), {"bias": False}, inputs=(normal(4, 2, 3),)),
    Case("LayerNorm", ((4, 64),), {"elementwise_affine": False}, inputs=(normal(2, 4, 64),)),
]
