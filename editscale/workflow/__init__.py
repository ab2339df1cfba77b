"""Running the study: parameters, notebooks, records of what made a result, reports, and the command line.

May import every other room.
"""
