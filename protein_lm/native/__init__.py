"""Compiled kernels for CPUs: optional, built by `protein-lm kernels build`; without them everything takes the torch path."""
