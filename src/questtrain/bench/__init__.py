"""How fast it is, against BF16: linear layers, models at inference, training steps.

What all benchmarks share stands here: their settings, how calls are timed, results, tables,
pictures. A room holds what is measured: `layer`, `model`, `train`.
"""
