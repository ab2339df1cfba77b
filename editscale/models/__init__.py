"""Language models as an editor sees them: where they keep what, texts as tokens, parts of a forward, stacks of copies.

May import kernels and data.
"""
