"""Edits one after another: the ledger that keeps them, the loop that makes them, and what is asked along the way.

May import metrics and what they may import.
"""
