"""Public ops of the ground floor; the plain-torch ones are specification and fallback."""

from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform

__all__ = ["hadamard_signs", "hadamard_transform"]
