from . import Case, normal, value


def both(*shape):
    """An LSTM's state, (h, c)."""
    return lambda rng: (rng.standard_normal(shape), rng.standard_normal(shape))


CASES = [
    Case("RNN", (2, 3), inputs=(normal(4, 2, 2),)),
    Case("RNN", (2, 3, 2, "relu"), {"bidirectional": True}, inputs=(normal(4, 2, 2), normal(4, 2, 3))),
    Case("RNN", (2, 3), {"bias": False, "batch_first": True}, inputs=(normal(2, 4, 2),)),
    Case("GRU", (2, 3), inputs=(normal(4, 2, 2),)),
    Case("GRU", (2, 3, 2), {"bidirectional": True, "batch_first": True}, inputs=(normal(2, 4, 2), normal(4, 2, 3))),
    Case("GRU", (2, 3), {"bias": False}, inputs=(normal(4, 2), normal(1, 3))),
    Case("GRU", (2, 3, 2), {"dropout": 0.5}, inputs=(normal(4, 2, 2),), random=True),
    Case("LSTM", (2, 3), inputs=(normal(4, 2, 2),)),
    Case("LSTM", (2, 4, 2), inputs=(normal(4, 3, 2), both(2, 3, 4))),
    Case("LSTM", (2, 4), {"proj_size": 3, "bidirectional": True, "batch_first": True}, inputs=(normal(2, 4, 2),)),
    Case("LSTM", (2, 3, 2), {"bias": False}, inputs=(normal(4, 2),)),
    Case("RNNCell", (2, 3), inputs=(normal(4, 2),)),
    Case("RNNCell", (2, 3, False, "relu"), inputs=(normal(2), normal(3))),
    Case("LSTMCell", (2, 3), inputs=(normal(4, 2), both(4, 3))),
    Case("LSTMCell", (2, 3, False), inputs=(normal(2),)),
    Case("GRUCell", (2, 3), inputs=(normal(4, 2), normal(4, 3))),
    Case("GRUCell", (2, 3), {"bias": False}, inputs=(normal(2), value(None))),
]
