"""Sequential model editing of causal language models, and what it makes them forget.

The study: Gupta, Rao, Anumanchipalli 2024, "Model Editing at Scale leads to Gradual and Catastrophic
Forgetting" (arXiv:2401.07453). One term of the field per module; importing the package loads none of them.
"""

__version__ = "0.1.0"
