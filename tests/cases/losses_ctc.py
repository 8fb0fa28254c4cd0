import numpy as np

from . import Case, normal, value

TARGETS = value(np.array([[1, 2, 2, 1], [3, 1, 0, 0], [2, 2, 2, 0]]))
JOINED = value(np.array([1, 2, 2, 1, 3, 1, 2, 2, 2]))
INPUTS, LENGTHS = value(np.array([7, 6, 5])), value(np.array([4, 2, 3]))

CASES = [
    Case("CTCLoss", inputs=(normal(7, 3, 4), TARGETS, INPUTS, LENGTHS)),
    Case("CTCLoss", kwargs={"reduction": "none"}, inputs=(normal(7, 3, 4), JOINED, value((7, 6, 5)), value((4, 2, 3)))),
    Case("CTCLoss", (3, "sum", True), inputs=(normal(7, 2, 4), value(np.array([[1, 1, 1], [2, 0, 1]])), value((4, 6)), value((3, 3)))),
    Case("CTCLoss", kwargs={"reduction": "sum"}, inputs=(normal(5, 4), value(np.array([1, 2])), value(np.array(5)), value(np.array(2)))),
]
