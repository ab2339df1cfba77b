"""Products of matrices and CUDA graphs: delete what is here and every number stays, up to rounding.

Imports no other room of the package.
"""
