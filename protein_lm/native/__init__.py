"""Compiled code for CPUs, which is optional: without it everything takes the path of torch or numpy.

- `build` compiles the sources, for `protein-lm kernels build`; `library` loads the kernels, `reader` the reader of files.
- `structures` has the structures that Python and C++ share; `numpy_reader` is the reference of the reader.
- linear_attention.cpp, exact_attention.cpp, rotary.cpp, decoding.cpp: kernels, out of vectors.h and products.h, called by
  `attention.backends` and `model.native_decoding`. levels.cpp tells which levels a processor has.
- fasta.cpp, flat_file.cpp and columns.cpp: the reader of files, out of reading.h.
- `memory` has settings of the C library's memory.
"""
