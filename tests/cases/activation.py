import numpy as np

from . import Case, normal, value

# Both sides of every kink, and none of the kinks: derivatives there, and inplace=True, are in test_activation.py.
SPREAD = value(np.array([[-8.0, -3.5, -2.5, -1.25, -0.3], [0.2, 0.75, 2.5, 5.5, 9.0]]))

# fmt: off
PLAIN = [
    "ELU", "CELU", "SELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid",
    "Mish", "PReLU", "ReLU", "ReLU6", "Sigmoid", "SiLU", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
]
# fmt: on

CASES = [
    *(Case(name, inputs=(SPREAD,)) for name in PLAIN),
    Case("ELU", (0.5,), inputs=(SPREAD,)),
    Case("CELU", (0.5,), inputs=(SPREAD,)),
    Case("GELU", ("tanh",), inputs=(SPREAD,)),
    Case("Hardshrink", (1.0,), inputs=(SPREAD,)),
    Case("Softshrink", (1.0,), inputs=(SPREAD,)),
    Case("Hardtanh", (-2.0, 3.0), inputs=(SPREAD,)),
    Case("LeakyReLU", (0.3,), inputs=(SPREAD,)),
    Case("PReLU", (3, 0.1), inputs=(normal(2, 3),)),
    Case("PReLU", (3,), inputs=(normal(2, 3, 2, 2),)),
    Case("Softplus", (2.0, 5.0), inputs=(SPREAD,)),
    Case("Threshold", (0.5, 20.0), inputs=(SPREAD,)),
    Case("RReLU", inputs=(SPREAD,), random=True),
    Case("RReLU", (0.2, 0.4), inputs=(SPREAD,), random=True),
    Case("GLU", inputs=(normal(2, 4),)),
    Case("GLU", (0,), inputs=(normal(4, 3),)),
    Case("Softmax", (-1,), inputs=(SPREAD,)),
    Case("Softmax", (0,), inputs=(normal(3, 2, 2),)),
    Case("Softmin", (1,), inputs=(SPREAD,)),
    Case("LogSoftmax", (1,), inputs=(SPREAD,)),
    Case("Softmax2d", inputs=(normal(2, 3, 2, 2),)),
    Case("Softmax2d", inputs=(normal(3, 2, 2),)),
]
