"""Yardsticks of development: what things cost, whether numbers of others are met, and what survives a kill."""
