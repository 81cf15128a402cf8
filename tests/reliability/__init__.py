"""Programmes that do to a live server what may happen to it, and say what it took.

Each module has a `run(**bounds)` that returns {"name", "passed", "missed", "figures"}: its defaults
are the whole, the tests run a short form. `python -m tests.reliability` prints them as JSON.
"""
