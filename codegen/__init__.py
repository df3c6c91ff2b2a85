"""The compiler: layer specs in, kernel sources out.  Imports neither PyTorch nor a kernel language."""
