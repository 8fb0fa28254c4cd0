from . import Case, normal, value

CASES = [
    Case("Conv1d", (4, 6, 3), inputs=(normal(2, 4, 7),)),
    Case("Conv1d", (4, 4, 3), {"padding": "same", "padding_mode": "circular", "bias": False}, inputs=(normal(4, 6),)),
    Case("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}, inputs=(normal(2, 4, 6, 7),)),
    Case("Conv2d", (4, 6, 2), {"groups": 2, "padding": "same", "padding_mode": "reflect"}, inputs=(normal(2, 4, 5, 4),)),
    Case("Conv2d", (3, 6, 3), {"groups": 3, "stride": 2, "padding": 1, "padding_mode": "replicate"}, inputs=(normal(2, 3, 5, 6),)),
    Case("Conv2d", (2, 3, 1), {"padding": "valid"}, inputs=(normal(2, 3, 4),)),
    Case("Conv2d", (3, 3, 1), {"groups": 3}, inputs=(normal(2, 3, 4, 5),)),
    Case("Conv3d", (2, 3, (3, 3, 1)), {"padding": "same", "dilation": (1, 2, 1)}, inputs=(normal(2, 2, 3, 5, 2),)),
    Case("ConvTranspose1d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, inputs=(normal(2, 4, 5),)),
    Case("ConvTranspose1d", (2, 3, 3), {"stride": 3, "dilation": 2, "bias": False}, inputs=(normal(2, 4),)),
    Case("ConvTranspose2d", (2, 3, (3, 2)), {"stride": (2, 3)}, inputs=(normal(2, 2, 3, 4),)),
    Case("ConvTranspose2d", (2, 3, 3), {"stride": 2, "padding": 1}, inputs=(normal(2, 2, 3, 4), value((6, 7)))),
    Case("ConvTranspose2d", (3, 3, 1), {"groups": 3}, inputs=(normal(2, 3, 4, 5),)),
    Case("ConvTranspose3d", (2, 2, 2), {"stride": (1, 2, 1), "padding": (0, 2, 0)}, inputs=(normal(1, 2, 2, 4, 2),)),
]
