"""Recall: how well models find again what stood earlier in their context."""
