import numpy as np

from . import Case, ints, normal, uniform, value

WEIGHT = np.array([0.5, 1.0, 2.0], np.float32)
PROBABILITIES = value(np.full((2, 3, 2), 1 / 3))

PROPERTIES = ["oracle", "names", "state", "pure", "faces", "copies", "narrow", "jit", "vmap", "jvp", "second_order", "scan", "half"]
DEPRECATED = dict.fromkeys(PROPERTIES, "constructing it warns; it is NLLLoss, and test_losses.py shows the warning")

CASES = [
    Case("NLLLoss", inputs=(normal(4, 3), ints(3, 4))),
    Case("NLLLoss", inputs=(normal(3), ints(3))),
    Case("NLLLoss", (WEIGHT,), {"ignore_index": 1}, inputs=(normal(2, 3, 4, 2), ints(3, 2, 4, 2))),
    Case("NLLLoss", (WEIGHT,), {"reduction": "none"}, inputs=(normal(2, 3, 4), ints(3, 2, 4))),
    Case("NLLLoss2d", inputs=(normal(2, 3, 4, 2), ints(3, 2, 4, 2)), unlike=DEPRECATED),
    Case("CrossEntropyLoss", inputs=(normal(4, 3), ints(3, 4))),
    Case("CrossEntropyLoss", kwargs={"reduction": "sum"}, inputs=(normal(3), ints(3))),
    Case("CrossEntropyLoss", (WEIGHT,), {"ignore_index": 1, "label_smoothing": 0.2}, inputs=(normal(2, 3, 4), ints(3, 2, 4))),
    Case("CrossEntropyLoss", kwargs={"reduction": "none", "label_smoothing": 0.2}, inputs=(normal(4, 3), ints(3, 4))),
    Case("CrossEntropyLoss", (WEIGHT,), {"label_smoothing": 0.1}, inputs=(normal(2, 3, 2), PROBABILITIES)),
    Case("CrossEntropyLoss", kwargs={"reduction": "none"}, inputs=(normal(2, 3, 2), PROBABILITIES)),
    Case("BCEWithLogitsLoss", inputs=(normal(4, 3), uniform(4, 3))),
    Case("BCEWithLogitsLoss", (WEIGHT,), {"pos_weight": 2 * WEIGHT, "reduction": "none"}, inputs=(normal(4, 3), uniform(4, 3))),
    Case("BCEWithLogitsLoss", kwargs={"pos_weight": WEIGHT, "reduction": "sum"}, inputs=(normal(3), uniform(3))),
    Case("BCELoss", inputs=(uniform(4, 3, low=0.1, high=0.9), uniform(4, 3))),
    Case("BCELoss", (WEIGHT,), {"reduction": "none"}, inputs=(uniform(4, 3, low=0.1, high=0.9), uniform(4, 3))),
    Case("MultiLabelSoftMarginLoss", inputs=(normal(4, 3), uniform(4, 3))),
    Case("MultiLabelSoftMarginLoss", (WEIGHT,), {"reduction": "none"}, inputs=(normal(4, 3), uniform(4, 3))),
]
