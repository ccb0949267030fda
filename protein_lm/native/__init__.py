"""Compiled code for CPUs, which is optional: without it everything takes the path of torch or numpy.

`build` compiles the sources for `protein-lm kernels build`, and `library` loads the kernels. The reader of files is in
`reader`; `numpy_reader` is its reference. The structures that Python and C++ share are in `structures`, and settings of the
C library's memory in `freed_memory`.

The kernels are called by `attention.backends`, `model.backends` and `model.linear_layer`. Their sources are
linear_attention.cpp, exact_attention.cpp, block_attention.cpp, rotary.cpp, linear_layer.cpp and decoding.cpp. They share
vectors.h and products.h. A further source, levels.cpp, tells which levels a processor has.

The reader of files is fasta.cpp, flat_file.cpp and columns.cpp, which use reading.h.
"""
