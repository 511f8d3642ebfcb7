"""The command line: each command reads its options, calls the library, and prints.

Results go to standard output, everything else (progress, notes, errors) to standard error.
"""
