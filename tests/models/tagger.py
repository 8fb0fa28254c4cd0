"""A tagger with a bidirectional LSTM over packed sequences, as people write it for torch."""

import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    def __init__(self, vocab=13, tags=5, width=6, hidden=7):
        super().__init__()
        self.embed = nn.Embedding(vocab, width, padding_idx=0)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(p=0.0)
        self.hidden2tag = nn.Linear(2 * hidden, tags)
        for name, p in self.lstm.named_parameters():
            if "bias" in name:
                n = p.shape[0]
                p.data[n // 4 : n // 2] = 1.0

    def forward(self, words, lengths):
        packed = pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.lstm(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=words.shape[1])
        return self.hidden2tag(self.dropout(out))
