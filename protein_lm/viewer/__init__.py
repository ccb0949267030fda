"""Attention to walk around in: an HTML file of its own (`page`), and the same in a notebook (`widget`).

`content` gathers what both show; `viewer.js` and `viewer.css` show it, without a library; `3Dmol-min.js` (BSD licence beside
it) draws structures.
"""
