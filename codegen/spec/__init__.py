"""The spec language: what a layer means, read from YAML, checked, and kept as frozen dataclasses."""
