"""`python -m benchmarks.transfer`: atoms in classifiers, transferred to new tasks."""
