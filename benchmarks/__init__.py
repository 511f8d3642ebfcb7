"""Speed of crnn beside its peers: same weights, same inputs, same threads, one process per peer.

Run ``python -m benchmarks`` from a checkout; ``benchmarks/README.md`` says how to read the result.
"""
