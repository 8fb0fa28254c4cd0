"""Packed and padded sequences, as torch.nn.utils.rnn."""

from ..layers.packed import PackedSequence as PackedSequence
from ..layers.packed import invert_permutation as invert_permutation
from ..layers.packed import pack_padded_sequence as pack_padded_sequence
from ..layers.packed import pack_sequence as pack_sequence
from ..layers.packed import pad_packed_sequence as pad_packed_sequence
from ..layers.packed import pad_sequence as pad_sequence
from ..layers.packed import unpack_sequence as unpack_sequence
from ..layers.packed import unpad_sequence as unpad_sequence
