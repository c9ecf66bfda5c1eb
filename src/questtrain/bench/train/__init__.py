"""A whole optimizer step, against BF16 as anybody would write it and as ours."""
