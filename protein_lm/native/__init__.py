"""Compiled code for CPUs, which is optional: without it everything takes the path of torch or numpy.

`build` compiles the sources for `protein-lm kernels build`. `library` loads the kernels. `reader` loads the reader of files,
and `numpy_reader` is its reference. `structures` has the structures that Python and C++ share. `memory` has settings of the
C library's memory.

Kernels are out of vectors.h and products.h; `attention.backends`, `model.backends` and `model.linear_layer` call them:
linear_attention.cpp, exact_attention.cpp, block_attention.cpp, rotary.cpp, linear_layer.cpp, decoding.cpp.
levels.cpp tells which levels a processor has.

The reader of files is fasta.cpp, flat_file.cpp and columns.cpp, out of reading.h.
"""
