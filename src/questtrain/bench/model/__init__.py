"""Whole models: packed against BF16."""
