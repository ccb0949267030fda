"""Side-by-side measurements of protein_lm and its peers; see README.md in this folder."""
