"""How fast the kernels and the packed models are: layers, prefill, decode."""
