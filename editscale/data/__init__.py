"""Facts to edit, the orders they are edited in, few-shot tasks, and the files that come with the package.

Imports no other room of the package.
"""
