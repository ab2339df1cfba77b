"""Faster products, blocks of layers by few kernels, and CUDA graphs. Skip this room when you read the method.

Without it every number stays the same, up to rounding: `matmul.fast` could be an empty context, which leaves blocks too
to the model's own code; `cuda_graphs.descend` is `descent.descend`, `cuda_graphs.without_gradient` calls the function
it is given, and a `transfer.Room` gives `.cpu()`. `plain` is what the kernels of blocks do, in torch. Imports no other
room.
"""
