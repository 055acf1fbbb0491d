"""The experiments of the paper, and better ones, on a trained encoder.

Each module has a function `run(subject) -> Measured` that is named in
`evaluation.experiments`; what it computes with is in `evaluation` and `transforms`.
"""
