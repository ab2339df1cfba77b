"""What is measured of a model: scores of facts, texts it writes, few-shot tasks, and how far its weights have moved.

May import editing and what it may import.
"""
