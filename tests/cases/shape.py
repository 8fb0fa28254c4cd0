from . import Case, normal

CASES = [
    Case("Flatten", inputs=(normal(2, 3, 4),)),
    Case("Flatten", (0, 1), inputs=(normal(2, 3, 4),)),
    Case("Unflatten", (1, (2, 3)), inputs=(normal(4, 6),)),
    Case("Unflatten", (-1, (2, -1)), inputs=(normal(4, 6),)),
    Case("PixelShuffle", (2,), inputs=(normal(2, 8, 2, 3),)),
    Case("PixelUnshuffle", (2,), inputs=(normal(2, 2, 4, 6),)),
    Case("ChannelShuffle", (2,), inputs=(normal(2, 6, 2, 2),)),
]
