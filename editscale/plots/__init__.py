"""Tables as pictures: one look for a method everywhere, the panels of the figures, and what captions say.

May import analysis. Neither torch nor a model.
"""
