from . import Case, normal

CASES = [
    Case("ConstantPad1d", (2, 1.5), inputs=(normal(2, 3),)),
    Case("ConstantPad2d", ((1, 2, -1, 1), -2.0), inputs=(normal(2, 3, 4),)),
    Case("ConstantPad3d", ((0, 1, 2, 0, 1, 1), 0.5), inputs=(normal(1, 2, 2, 3, 2),)),
    Case("ZeroPad1d", ((-1, 3),), inputs=(normal(2, 3),)),
    Case("ZeroPad2d", (1,), inputs=(normal(2, 2, 3),)),
    Case("ZeroPad3d", ((0, 1, 2, 0, 1, 1),), inputs=(normal(2, 2, 3, 2),)),
    Case("ReflectionPad1d", (2,), inputs=(normal(2, 2, 4),)),
    Case("ReflectionPad1d", ((-2, 3),), inputs=(normal(2, 5),)),
    Case("ReflectionPad2d", ((1, 2, 0, 1),), inputs=(normal(2, 2, 3, 4),)),
    Case("ReflectionPad3d", (1,), inputs=(normal(2, 2, 3, 2),)),
    Case("ReplicationPad1d", ((5, -1),), inputs=(normal(2, 2, 4),)),
    Case("ReplicationPad2d", ((1, 4, 0, 1),), inputs=(normal(2, 3, 4),)),
    Case("ReplicationPad3d", (1,), inputs=(normal(1, 2, 2, 3, 2),)),
    Case("CircularPad1d", ((4, -1),), inputs=(normal(2, 2, 5),)),
    Case("CircularPad2d", ((1, 4, 0, 1),), inputs=(normal(2, 3, 4),)),
    Case("CircularPad3d", (1,), inputs=(normal(1, 2, 2, 3, 2),)),
]
