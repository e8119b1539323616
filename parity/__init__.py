"""parity: numerical parity between a PyTorch model and its MLX port."""

__version__ = "0.1.0"
