"""Faster products of matrices and CUDA graphs. Skip this room when you read the method.

Without it every number stays the same, up to rounding: `matmul.fast` could be an empty context, `cuda_graphs.descend`
is `descent.descend`, and `cuda_graphs.without_gradient` calls the function it is given. Imports no other room.
"""
