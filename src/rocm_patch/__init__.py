"""Tell what is wrong with PyTorch on an RDNA1 or RDNA2 card, prove it, repair it, and take the repair back."""

__version__ = "0.1.0"
