"""A whole model at inference: prefill (figure 7) and decoding, packed against BF16."""
