"""The idea under every layer: spec, state view, key streams, trees, checks. No neural networks here."""

from .allocator import keep_freed_memory

keep_freed_memory()
