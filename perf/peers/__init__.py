"""Other ways to serve the same bundle, written as well as we can, to compare with.

`python -m perf.peers BUNDLE VOLUME` runs them all in turns with our ensemble on one volume.
Labels are compared before a figure counts.
"""
