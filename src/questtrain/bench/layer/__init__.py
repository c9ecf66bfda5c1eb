"""The linear layers of a block and their quantizers, one by one and together (figure 6)."""
