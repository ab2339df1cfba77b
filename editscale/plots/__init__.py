"""Tables as pictures: one look for a method everywhere, and the panels of the figures.

May import analysis. Neither torch nor a model.
"""
