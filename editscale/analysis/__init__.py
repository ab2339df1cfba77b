"""What the tables of runs say: forgetting, collapses, drift, disabling edits, intervals over orders, claims.

May import metrics and the rooms below that need neither torch nor a model; imports neither itself.
"""
