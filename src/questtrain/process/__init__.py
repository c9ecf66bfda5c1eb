"""This process and its children: what asks them to end, and how they start."""
