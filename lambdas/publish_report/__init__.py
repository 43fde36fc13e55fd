"""Publish the report of a study: from metric records to tables, plots and one HTML page.

A Lambda function, and a library for the command line; only `handler` knows AWS. In the order of the data:

    results      the shapes: what came out of a study, the result of one experiment
    aggregation  records → result of one experiment
    labels       what was emulated or injected, and how gradients travelled, in words
    conditions   experiments alike in all but their seed, side by side
    estimates    spreads over seeds, paired intervals
    findings     the sentences that answer "which way wins?"
    rankings     those of them that set more than two conditions side by side
    notes        how far to believe them
    laws         what theory says that an experiment should have measured
    wording      figures as people read them
    tables       summary.txt, summary.csv, study.json
    series       figures over epochs, and over numbers of workers
    plots        results → PNG and SVG, in the drawing style of `style`
    side_by_side the plot of all conditions with one number of workers
    sections     results → the tables of report.html
    spending     those of them on time, bytes and losses
    costs        the plan beside what the tasks took
    inline       an SVG plot as part of the page, in its colours
    page         all of it: outcome → files
"""
