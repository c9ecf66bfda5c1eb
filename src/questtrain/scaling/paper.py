"""The law as the paper's authors published it: for plans before one's own grid has run.

eff(P) to more digits than table 1, and A, α, B, β, E: from the fit that accompanies the paper's
public code (github.com/IST-DASLab/QuEST, notebook ``plots``). C4, Llama-2 tokenizer, 30M to 800M
parameters; no intervals.
"""

from __future__ import annotations

import math

from questtrain.scaling.law import Estimate, Law

PAPER_LAW = Law(
    form="quest",
    A=Estimate(math.exp(2.09605662)),
    alpha=Estimate(6.27265220e-2),
    B=Estimate(math.exp(4.45912547)),
    beta=Estimate(2.41288351e-1),
    E=Estimate(math.exp(-6.55478434)),
    eff={
        "1": Estimate(2.05046859e-2),
        "w1a16": Estimate(1.38419575e-1),
        "2": Estimate(1.51870911e-1),
        "w2a16": Estimate(4.13717453e-1),
        "w4s24a4": Estimate(3.81222089e-1),
        "3": Estimate(4.33126203e-1),
        "w3a16": Estimate(6.53058816e-1),
        "4": Estimate(6.91831718e-1),
        "fp4": Estimate(6.29639028e-1),
        "w4a16": Estimate(8.40434222e-1),
        "8": Estimate(1.01619263),
    },
    rms_log_residual=3.77e-3,
    points=104,
    params_range=(30_482_560, 822_151_168),
    tokens_range=(7.5e8, 8e10),
)
