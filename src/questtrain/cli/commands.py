"""The commands by name, and what each does in one line."""

COMMANDS = {
    "train": "train one model",
    "sweep": "train a whole grid of runs, on this machine or on a Slurm cluster",
    "generate": "continue a prompt with a trained model",
    "eval": "put tasks to a trained model, in the bits that it was trained in",
    "serve": "answer requests of the OpenAI API with a trained model",
    "export": "a trained model in the format of another program, with a certificate",
    "verify": "compare an export with its run again",
    "diagnose": "what quantization does to a run's gradients: alignment, masks, persistence",
    "runs": "the table of runs, filtered and exported",
    "fit": "the scaling law of runs",
    "plan": "the best precision, size and token count for a budget",
    "plot": "a figure of the paper from runs",
    "report": "runs, their law and figures as one page that opens without network",
    "bench": "speed of layers, prefill, decoding and training against BF16",
    "info": "parameters, tokens, steps, FLOPs and memory of a run before it starts",
    "data": "prepare or inspect token shards",
    "doctor": "what works on this machine",
    "completion": "shell completion for bash or zsh",
}

ANSWER_WITHOUT_WORDS = ("train", "generate", "diagnose", "runs", "info", "doctor")
"""The others show their help page then."""
