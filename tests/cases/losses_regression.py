from . import Case, normal

CASES = [
    Case("L1Loss", inputs=(normal(4, 3), normal(4, 3))),
    Case("L1Loss", kwargs={"reduction": "none"}, inputs=(normal(3), normal(3))),
    Case("MSELoss", inputs=(normal(4, 3), normal(4, 3))),
    Case("MSELoss", kwargs={"reduction": "sum"}, inputs=(normal(3), normal(3))),
    Case("MSELoss", kwargs={"reduction": "none"}, inputs=(normal(3), normal(3))),
]
