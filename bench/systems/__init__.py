"""The systems that are measured, one module each.

Each shows how a worker pushes a gradient and gets parameters back; none knows of rounds or medians.
"""
