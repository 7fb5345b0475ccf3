"""Agents that act on slots: the demo, and (later) extractors, policies and their training."""
