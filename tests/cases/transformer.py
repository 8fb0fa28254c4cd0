from . import Case, normal, value
from .attention import CAUSAL, PADDED

ENCODER = Case("TransformerEncoderLayer", (4, 2, 5, 0.0), {"batch_first": True})
DECODER = Case("TransformerDecoderLayer", (4, 2, 5, 0.0))

CASES = [
    Case("TransformerEncoderLayer", (4, 2, 5, 0.0), inputs=(normal(3, 2, 4),), call={"src_mask": value(CAUSAL), "is_causal": value(True)}),
    Case(
        "TransformerEncoderLayer",
        (4, 2, 5, 0.0, "gelu"),
        {"batch_first": True, "norm_first": True, "bias": False},
        inputs=(normal(2, 3, 4),),
        call={"src_key_padding_mask": value(PADDED)},
    ),
    Case("TransformerEncoderLayer", (4, 2, 5), {"activation": Case("SiLU")}, inputs=(normal(3, 4),), random=True),
    Case(
        "TransformerDecoderLayer",
        (4, 2, 5, 0.0),
        inputs=(normal(3, 2, 4), normal(5, 2, 4)),
        call={"tgt_mask": value(CAUSAL), "memory_mask": normal(3, 5)},
    ),
    Case("TransformerDecoderLayer", (4, 1, 5, 0.0), {"norm_first": True, "batch_first": True}, inputs=(normal(2, 3, 4), normal(2, 3, 4))),
    Case(
        "TransformerEncoder",
        (ENCODER, 2, Case("LayerNorm", (4,))),
        {"enable_nested_tensor": False},
        inputs=(normal(2, 3, 4),),
        call={"mask": value(CAUSAL), "src_key_padding_mask": value(PADDED)},
    ),
    Case("TransformerDecoder", (DECODER, 2), inputs=(normal(3, 2, 4), normal(5, 2, 4)), call={"tgt_mask": value(CAUSAL)}),
    Case(
        "Transformer",
        (4, 2, 1, 1, 5, 0.0),
        {"batch_first": True},
        inputs=(normal(2, 3, 4), normal(2, 3, 4)),
        call={"tgt_mask": value(CAUSAL), "src_key_padding_mask": value(PADDED)},
    ),
]
