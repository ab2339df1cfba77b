"""The method: from a fact and a model to an update of its weights. Read it in the order descent, values, rome, memit.

May import models and what they may import.
"""
