from . import Case, normal, uniform, value

CASES = [
    Case("L1Loss", inputs=(normal(4, 3), normal(4, 3))),
    Case("L1Loss", kwargs={"reduction": "none"}, inputs=(normal(3), normal(3))),
    Case("MSELoss", inputs=(normal(4, 3), normal(4, 3))),
    Case("MSELoss", kwargs={"reduction": "sum"}, inputs=(normal(3), normal(3))),
    Case("MSELoss", kwargs={"reduction": "none"}, inputs=(normal(3, 2), normal(3, 2))),
    Case("SmoothL1Loss", inputs=(normal(4, 3), normal(4, 3))),
    Case("SmoothL1Loss", kwargs={"reduction": "none", "beta": 0.3}, inputs=(normal(3), normal(3))),
    Case("SmoothL1Loss", kwargs={"reduction": "sum", "beta": 0.0}, inputs=(normal(3), normal(3))),
    Case("HuberLoss", inputs=(normal(4, 3), normal(4, 3))),
    Case("HuberLoss", ("none", 0.3), inputs=(normal(3), normal(3))),
    Case("PoissonNLLLoss", inputs=(normal(4, 3), uniform(4, 3, high=5.0))),
    Case("PoissonNLLLoss", (False, True), {"reduction": "none"}, inputs=(uniform(8, low=0.1, high=2.0), uniform(8, low=0.1, high=5.0))),
    Case("PoissonNLLLoss", kwargs={"full": True, "reduction": "sum"}, inputs=(normal(4), uniform(4, low=2.0, high=5.0))),
    Case("GaussianNLLLoss", inputs=(normal(4, 3), normal(4, 3), uniform(4, 3, low=0.1))),
    Case("GaussianNLLLoss", kwargs={"full": True, "reduction": "none"}, inputs=(normal(4, 3), normal(4, 3), uniform(4, low=0.1))),
    Case("GaussianNLLLoss", kwargs={"eps": 0.5, "reduction": "sum"}, inputs=(normal(4, 3), normal(4, 3), uniform(4, 1))),
    Case("GaussianNLLLoss", inputs=(normal(4, 3), normal(4, 3), value(0.5))),
    Case("KLDivLoss", kwargs={"reduction": "batchmean"}, inputs=(normal(4, 3), uniform(4, 3, low=0.1))),
    Case("KLDivLoss", kwargs={"reduction": "none", "log_target": True}, inputs=(normal(4, 3), normal(4, 3))),
    Case("KLDivLoss", kwargs={"reduction": "sum"}, inputs=(normal(3), uniform(3, low=0.1))),
]
