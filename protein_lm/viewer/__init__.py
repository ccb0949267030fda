"""Interactive views of attention: an HTML file (`page`), and the same in a notebook (`widget`).

`content` gathers the data of both. `viewer.js` and `viewer.css` show it, without a library. `3Dmol-min.js` draws structures;
its BSD licence is in `3Dmol-LICENSE.txt`.
"""
