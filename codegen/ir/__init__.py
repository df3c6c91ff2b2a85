"""The tile program: its grammar, its printer and its well-formedness check."""
