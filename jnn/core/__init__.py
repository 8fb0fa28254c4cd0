"""The idea under every layer: spec, state view, key streams, trees, checks. No neural networks here."""

from .process import dispatch_inline, keep_freed_memory

keep_freed_memory()
dispatch_inline()
