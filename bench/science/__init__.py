"""The effects of three papers on real runs: study files, figures with intervals, plots, docs/science.md.

Runs on one machine, by hand: `python -m bench.science`. It reads what the report publishes and sees nothing else of
the chain.
"""
