"""Measures Tandem and its peers side by side: workloads, a load generator, deployments, comparisons. See README.md."""
