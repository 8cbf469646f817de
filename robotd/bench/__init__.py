"""Benchmarks: the bus tick beside its peers, the loop beside a C thread, latency, start-up.

Each bench returns a `report.Report`: tables for people, the same figures as JSON for machines, and
the goals they are held against. Nothing here is a test: figures depend on the machine.
"""
