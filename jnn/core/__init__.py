"""The idea under every layer: spec, state view, key streams, trees, checks. No neural networks here."""
