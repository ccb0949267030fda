// Attention of one protein to walk around in. `mount` builds everything below an element; the data are those of content.py.
// Residues count from 1, ranges are [start, stop). Text out of the data is only ever set as textContent or drawn.

const MARGIN = { left: 64, top: 46, right: 10, bottom: 44 };
const LETTER_PIXELS = 9;
const ARCS_AT_FIRST = 60;
const BACKWARD = "#0072b2";
const FORWARD = "#d55e00";
const HELP =
  "Drag to zoom into a region, click to choose the attending residue, double click to go back. Keys: arrows move the cursor " +
  "(with Shift by ten), Enter marks a corner and then zooms, Space chooses the residue, + and − zoom, Escape goes back, " +
  "0 shows everything, [ and ] change the head.";

export function mount(root, data) {
  return new Viewer(root, data);
}

export default {
  render({ model, el }) {
    const library = model.get("library");
    if (library && !window.$3Dmol) {
      const script = document.createElement("script");
      script.textContent = library;
      document.head.append(script);
    }
    const viewer = mount(el, model.get("content"));
    return () => viewer.close();
  },
};

// ---- data

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Numbers that all 16-bit floats stand for, divided by the scale. */
function halfTable(scale) {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
    table[bits] = (bits & 32768 ? -size : size) / scale;
  }
  return table;
}

/** For each residue from the first edge on, its block. */
function blocksOf(edges) {
  const blocks = new Uint32Array(edges[edges.length - 1] - edges[0]);
  for (let block = 0; block + 1 < edges.length; block++) {
    blocks.fill(block, edges[block] - edges[0], edges[block + 1] - edges[0]);
  }
  return blocks;
}

/** The weights of one head. */
class HeadMap {
  constructor(data, axes, entry) {
    this.axes = axes;
    this.size = data.tileSize;
    this.overview = new Uint16Array(bytesOf(entry.overview).buffer);
    this.tiles = new Uint16Array(bytesOf(entry.tiles).buffer);
    this.tileIndices = entry.tileIndices;
    this.across = Math.ceil(axes.columnBlocks.length / this.size);
    this.tileAt = new Map(entry.tileIndices.map(([row, column], index) => [row * this.across + column, index]));
    const attending = new Uint32Array(bytesOf(entry.attending).buffer);
    const attended = new Uint32Array(bytesOf(entry.attended).buffer);
    const weights = new Float32Array(bytesOf(entry.linkWeights).buffer);
    this.links = Array.from(weights, (weight, i) => ({ from: attending[i], to: attended[i], weight }));
  }

  block(row, column) {
    return this.axes.half[this.overview[row * this.axes.numColumns + column]];
  }

  /** The weight itself, or undefined where only block means were kept. */
  exact(row, column) {
    const { firstRow, firstColumn, half } = this.axes;
    const [y, x] = [row - firstRow, column - firstColumn];
    const tile = this.tileAt.get(Math.floor(y / this.size) * this.across + Math.floor(x / this.size));
    if (tile === undefined) return undefined;
    return half[this.tiles[(tile * this.size + (y % this.size)) * this.size + (x % this.size)]];
  }

  /** Mean of the blocks from and to which a range of residues reaches. */
  mean(rows, columns) {
    let sum = 0;
    for (let row = rows[0]; row < rows[1]; row++) {
      for (let column = columns[0]; column < columns[1]; column++) sum += this.block(row, column);
    }
    return sum / ((rows[1] - rows[0]) * (columns[1] - columns[0]));
  }
}

/** For each of `count` pixels over residues [start, stop), its residue and the blocks [from, to) that it covers. */
function pixelsOver(start, stop, count, blocks, first) {
  const pixels = [];
  for (let pixel = 0; pixel < count; pixel++) {
    const from = start + ((stop - start) * pixel) / count;
    const to = start + ((stop - start) * (pixel + 1)) / count;
    const begin = blocks[Math.floor(from) - first];
    const end = blocks[Math.min(Math.max(Math.ceil(to) - 1, Math.floor(from)), stop - 1) - first] + 1;
    const residue = Math.floor((from + to) / 2);
    pixels.push({ residue, blocks: stop - start > count ? [begin, end] : [blocks[residue - first], blocks[residue - first] + 1] });
  }
  return pixels;
}

function quantile(values, share) {
  const step = Math.max(1, Math.floor(values.length / 20000));
  const sample = [];
  for (let i = 0; i < values.length; i += step) sample.push(values[i]);
  sample.sort((a, b) => a - b);
  return sample[Math.min(sample.length - 1, Math.floor(share * sample.length))];
}

const SCALES = {
  "square root": (share) => Math.sqrt(share),
  linear: (share) => share,
  logarithm: (share) => 1 + Math.log10(Math.max(share, 1e-3)) / 3,
};

function colour(palette, share, pixels, offset) {
  const index = 3 * Math.max(0, Math.min(255, Math.round(255 * share)));
  pixels[offset] = palette[index];
  pixels[offset + 1] = palette[index + 1];
  pixels[offset + 2] = palette[index + 2];
  pixels[offset + 3] = 255;
}

function number(value) {
  return value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(3);
}

// ---- elements

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Give a canvas a size in CSS pixels, sharp on any screen, and return its cleared context. */
function sized(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  return context;
}

function ticks(start, stop, room) {
  const least = (stop - start) / room;
  const step = [1, 2, 5].map((unit) => unit * 10 ** Math.max(0, Math.floor(Math.log10(least)))).find((size) => size >= least);
  const chosen = Math.max(1, step || 10 ** Math.ceil(Math.log10(least)));
  const found = [];
  for (let tick = Math.ceil(start / chosen) * chosen || chosen; tick < stop; tick += chosen) found.push(tick);
  return found;
}

class Viewer {
  constructor(root, data) {
    this.data = data;
    this.sequence = data.sequence;
    this.palette = bytesOf(data.palette);
    this.axes = {
      half: halfTable(data.scale),
      rowBlocks: blocksOf(data.rowEdges),
      columnBlocks: blocksOf(data.columnEdges),
      firstRow: data.rowEdges[0],
      firstColumn: data.columnEdges[0],
      numColumns: data.columnEdges.length - 1,
    };
    this.whole = {
      rows: [data.rowEdges[0], data.rowEdges[data.rowEdges.length - 1]],
      columns: [data.columnEdges[0], data.columnEdges[data.columnEdges.length - 1]],
    };
    this.maps = new Map();
    this.view = this.whole;
    this.former = [];
    this.cursor = [this.whole.rows[0], this.whole.columns[0]];
    this.chosen = null; // the attending residue that the structure shows
    this.corner = null;
    this.current = [0, 0];
    this.build(root);
    this.listen();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.plot);
    this.thumbnails = this.buttons.flat();
    this.drawThumbnails();
    this.choose(0, 0);
  }

  close() {
    this.observer.disconnect();
    this.thumbnails = [];
    if (this.model3d) this.model3d.clear();
  }

  get map() {
    return this.mapAt(...this.current);
  }

  mapAt(layer, head) {
    const key = `${layer} ${head}`;
    if (!this.maps.has(key)) this.maps.set(key, new HeadMap(this.data, this.axes, this.data.maps[layer][head]));
    return this.maps.get(key);
  }

  residue(position) {
    return `${this.sequence[position - 1]}${position}`;
  }

  // ---- building

  build(root) {
    const { data } = this;
    this.heads = element("div", { className: "plm-heads", role: "radiogroup", "aria-label": "Layer and head" });
    this.heads.style.gridTemplateColumns = `auto repeat(${data.heads.length}, 40px)`;
    this.heads.append(element("span"), ...data.heads.map((head) => element("span", { textContent: `H${head}` })));
    this.buttons = data.layers.map((layer, row) => {
      this.heads.append(element("span", { textContent: `L${layer}` }));
      return data.heads.map((head, column) => {
        const label = `Layer ${layer}, head ${head}`;
        const canvas = element("canvas", { width: 34, height: 34 });
        const button = element("button", { type: "button", role: "radio", title: label, "aria-label": label }, canvas);
        button.addEventListener("click", () => this.choose(row, column));
        this.heads.append(button);
        return button;
      });
    });
    this.name = element("strong");
    this.scale = element("select", { "aria-label": "Colours" });
    this.scale.append(...Object.keys(SCALES).map((name) => element("option", { textContent: name })));
    const button = (text, label, action) => {
      const made = element("button", { type: "button", textContent: text, "aria-label": label, title: label });
      made.addEventListener("click", action);
      return made;
    };
    this.bar = element(
      "div",
      { className: "plm-bar" },
      this.name,
      button("+", "Zoom in at the cursor", () => this.magnify(0.5)),
      button("−", "Zoom out", () => this.magnify(2)),
      button("back", "Back to the region before", () => this.back()),
      button("all", "Show everything", () => this.zoom(this.whole)),
      element("label", {}, "colours ", this.scale),
    );
    this.canvas = element("canvas");
    this.overlay = element("canvas", {
      tabIndex: 0,
      role: "application",
      "aria-label": `Attention matrix; rows attend to columns. ${HELP}`,
    });
    this.plot = element("div", { className: "plm-plot" }, this.canvas, this.overlay);
    this.status = element("p", { className: "plm-status", role: "status" });
    this.threshold = element("input", { type: "range", min: 0, max: 1000, "aria-label": "Least weight of a link" });
    this.count = element("span");
    this.arcs = element("canvas", { className: "plm-arcs", role: "img", "aria-label": "Links along the sequence" });
    this.list = element("ol", { className: "plm-links", "aria-label": "Strongest links in view" });
    const middle = element(
      "div",
      {},
      this.bar,
      this.plot,
      this.status,
      element("label", { className: "plm-bar" }, "links of at least ", this.threshold, this.count),
      this.arcs,
      this.list,
    );
    const columns = element("div", { className: "plm-columns" }, this.heads, middle);
    if (data.structure) columns.append(this.buildStructure(columns));
    root.classList.add("plm-viewer");
    root.append(
      element("h1", { textContent: data.title }),
      element("p", { className: "plm-note", textContent: this.summary() }),
      columns,
      element("p", { className: "plm-note", textContent: HELP }),
    );
  }

  summary() {
    const { data } = this;
    const tokens = "Rows attend to columns; the weights of <cls> and <eos> are not shown.";
    if (data.isExact) return `Every weight is exact (to 0.05 %). ${tokens}`;
    const [rows, columns] = [data.rowEdges.length - 1, data.columnEdges.length - 1];
    const tiles = data.maps[0][0].tileIndices.length;
    return (
      `Means over ${rows} × ${columns} blocks, and exact weights in ${tiles} tiles of ${data.tileSize} × ${data.tileSize} ` +
      "residues for each head, framed: those in which a weight stands out most from its column. Links are exact as well. " + tokens
    );
  }

  buildStructure(columns) {
    columns.classList.add("plm-with-structure");
    this.scene = element("div", { className: "plm-structure", role: "img", "aria-label": "Structure" });
    this.legend = element("p", { role: "status" });
    const { structure } = this.data;
    this.positions = new Map(structure.numbers.map((name, index) => [name, index + 1]).filter(([name]) => name));
    return element("div", {}, element("strong", { textContent: structure.name }), this.scene, this.legend);
  }

  listen() {
    const { overlay } = this;
    this.scale.addEventListener("change", () => this.draw());
    this.threshold.addEventListener("input", () => this.drawLinks());
    overlay.addEventListener("keydown", (event) => this.key(event));
    overlay.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      overlay.setPointerCapture(event.pointerId);
      this.brush = [this.at(event), [event.offsetX, event.offsetY]];
    });
    overlay.addEventListener("pointermove", (event) => this.point(this.at(event)));
    overlay.addEventListener("pointerup", (event) => {
      if (!this.brush) return;
      const [start, [x, y]] = this.brush;
      this.brush = null;
      if (Math.hypot(event.offsetX - x, event.offsetY - y) > 4) this.zoomTo(start, this.at(event));
      else this.pick(start[0]);
    });
    overlay.addEventListener("pointercancel", () => (this.brush = null));
    overlay.addEventListener("dblclick", () => this.back());
    this.heads.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const [layer, head] = [this.current[0] + move[0], this.current[1] + move[1]];
      if (!this.buttons[layer]?.[head]) return;
      this.choose(layer, head);
      this.buttons[layer][head].focus();
    });
  }

  // ---- what a user does

  choose(layer, head) {
    this.current = [layer, head];
    for (const [row, buttons] of this.buttons.entries()) {
      for (const [column, button] of buttons.entries()) {
        const isChosen = row === layer && column === head;
        button.setAttribute("aria-checked", isChosen);
        button.tabIndex = isChosen ? 0 : -1;
      }
    }
    this.name.textContent = `Layer ${this.data.layers[layer]}, head ${this.data.heads[head]}`;
    const weights = this.map.links.map((link) => link.weight);
    this.most = weights.length ? weights[0] : 1;
    this.least = weights.length ? weights[weights.length - 1] : 1;
    const first = weights[Math.min(ARCS_AT_FIRST, weights.length) - 1] || this.most;
    this.threshold.value = Math.floor((1000 * Math.log(first / this.least)) / (Math.log(this.most / this.least) || 1));
    this.draw();
  }

  key(event) {
    const step = event.shiftKey ? 10 : 1;
    const [row, column] = this.cursor;
    const actions = {
      ArrowUp: () => this.point([row - step, column]),
      ArrowDown: () => this.point([row + step, column]),
      ArrowLeft: () => this.point([row, column - step]),
      ArrowRight: () => this.point([row, column + step]),
      Enter: () => this.mark(),
      " ": () => this.pick(row),
      "+": () => this.magnify(0.5),
      "=": () => this.magnify(0.5),
      "-": () => this.magnify(2),
      Escape: () => (this.corner ? this.mark(null) : this.back()),
      0: () => this.zoom(this.whole),
      "[": () => this.step(-1),
      "]": () => this.step(1),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** Go on to the next head, or back to the one before. */
  step(by) {
    const count = this.data.heads.length;
    const next = this.current[0] * count + this.current[1] + by;
    if (next >= 0 && next < this.data.layers.length * count) this.choose(Math.floor(next / count), next % count);
  }

  /** Mark a corner at the cursor, or zoom to what is between cursor and corner; null takes the mark away. */
  mark(corner = this.cursor) {
    if (corner && this.corner) {
      const start = this.corner;
      this.corner = null;
      this.zoomTo(start, corner);
    } else {
      this.corner = corner;
      this.drawOverlay();
    }
  }

  pick(residue) {
    this.chosen = this.chosen === residue ? null : residue;
    this.drawOverlay();
    this.drawStructure();
  }

  point([row, column]) {
    const { rows, columns } = this.view;
    this.cursor = [
      Math.max(rows[0], Math.min(rows[1] - 1, row)),
      Math.max(columns[0], Math.min(columns[1] - 1, column)),
    ];
    this.drawOverlay();
    this.status.textContent = this.told(...this.cursor);
  }

  told(row, column) {
    const { data, map, axes } = this;
    const who = `${this.residue(row)} attends to ${this.residue(column)}`;
    const tile = map.exact(row, column);
    if (tile !== undefined) return `${who}: ${number(tile)} (exact)`;
    const [y, x] = [axes.rowBlocks[row - axes.firstRow], axes.columnBlocks[column - axes.firstColumn]];
    const weight = number(map.block(y, x));
    if (data.isExact) return `${who}: ${weight} (exact)`;
    const link = map.links.find((each) => each.from === row && each.to === column);
    if (link) return `${who}: ${number(link.weight)} (exact)`;
    const span = (edges, block) => `${edges[block]}–${edges[block + 1] - 1}`;
    return `${who}: ${weight}, the mean of ${span(data.rowEdges, y)} attending to ${span(data.columnEdges, x)}`;
  }

  zoomTo(one, other) {
    const range = (side) => [Math.min(one[side], other[side]), Math.max(one[side], other[side]) + 1];
    this.zoom({ rows: range(0), columns: range(1) });
  }

  magnify(factor) {
    const range = ([start, stop], centre, whole) => {
      const size = Math.min(Math.max(4, Math.round((stop - start) * factor)), whole[1] - whole[0]);
      const from = Math.max(whole[0], Math.min(whole[1] - size, Math.round(centre - size / 2)));
      return [from, from + size];
    };
    this.zoom({
      rows: range(this.view.rows, this.cursor[0], this.whole.rows),
      columns: range(this.view.columns, this.cursor[1], this.whole.columns),
    });
  }

  zoom(view) {
    if (view !== this.view) this.former.push(this.view);
    this.view = view;
    this.draw();
    this.point(this.cursor);
  }

  back() {
    this.view = this.former.pop() || this.whole;
    this.draw();
    this.point(this.cursor);
  }

  // ---- drawing

  get frame() {
    const width = Math.max(160, this.plot.clientWidth) - MARGIN.left - MARGIN.right;
    return { width, height: width };
  }

  /** Row and column at a point of the overlay. */
  at(event) {
    const { width, height } = this.frame;
    const { rows, columns } = this.view;
    const inside = (share) => Math.max(0, Math.min(1 - 1e-9, share));
    const row = rows[0] + (rows[1] - rows[0]) * inside((event.offsetY - MARGIN.top) / height);
    const column = columns[0] + (columns[1] - columns[0]) * inside((event.offsetX - MARGIN.left) / width);
    return [Math.floor(row), Math.floor(column)];
  }

  draw() {
    const { width, height } = this.frame;
    const context = sized(this.canvas, width + MARGIN.left + MARGIN.right, height + MARGIN.top + MARGIN.bottom);
    const { image, top, isSigned } = this.image(this.map, this.view, Math.floor(width), Math.floor(height), SCALES[this.scale.value]);
    const sheet = element("canvas", { width: image.width, height: image.height });
    sheet.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(sheet, MARGIN.left, MARGIN.top, width, height);
    this.drawTiles(context);
    this.drawAxes(context);
    this.drawKey(context, top, isSigned);
    this.drawOverlay();
    this.drawLinks();
    this.drawStructure();
  }

  /** Pixels of a view, the weight that has the last colour, and whether some weights are negative (they have the first). */
  image(map, view, width, height, scale) {
    const { axes } = this;
    const rows = pixelsOver(...view.rows, height, axes.rowBlocks, axes.firstRow);
    const columns = pixelsOver(...view.columns, width, axes.columnBlocks, axes.firstColumn);
    const isClose = view.rows[1] - view.rows[0] <= height && view.columns[1] - view.columns[0] <= width;
    const hasTiles = isClose && map.tileIndices.length > 0;
    const values = new Float32Array(width * height);
    let index = 0;
    for (const row of rows) {
      for (const column of columns) {
        const exact = hasTiles ? map.exact(row.residue, column.residue) : undefined;
        values[index++] = exact === undefined ? map.mean(row.blocks, column.blocks) : exact;
      }
    }
    const top = quantile(values, 0.998) || quantile(values, 1) || 1;
    const image = new ImageData(width, height);
    for (index = 0; index < values.length; index++) {
      colour(this.palette, scale(Math.max(0, Math.min(1, values[index] / top))), image.data, 4 * index);
    }
    return { image, top, isSigned: values.some((value) => value < 0) };
  }

  drawThumbnails() {
    const start = performance.now();
    while (this.thumbnails.length && performance.now() - start < 12) {
      const index = this.buttons.flat().length - this.thumbnails.length;
      const canvas = this.thumbnails.shift().firstChild;
      const count = this.data.heads.length;
      const map = this.mapAt(Math.floor(index / count), index % count);
      canvas.getContext("2d").putImageData(this.image(map, this.whole, 34, 34, SCALES["square root"]).image, 0, 0);
    }
    if (this.thumbnails.length) requestAnimationFrame(() => this.drawThumbnails());
  }

  /** Where a residue begins on the canvas. */
  x(column) {
    const { columns } = this.view;
    return MARGIN.left + (this.frame.width * (column - columns[0])) / (columns[1] - columns[0]);
  }

  y(row) {
    const { rows } = this.view;
    return MARGIN.top + (this.frame.height * (row - rows[0])) / (rows[1] - rows[0]);
  }

  clip(context) {
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top, this.frame.width, this.frame.height);
    context.clip();
  }

  drawTiles(context) {
    const { size, tileIndices } = this.map;
    this.clip(context);
    context.strokeStyle = "#fff";
    context.lineWidth = 1;
    for (const [row, column] of tileIndices) {
      const [top, left] = [this.axes.firstRow + row * size, this.axes.firstColumn + column * size];
      const [right, bottom] = [Math.min(left + size, this.whole.columns[1]), Math.min(top + size, this.whole.rows[1])];
      context.strokeRect(this.x(left), this.y(top), this.x(right) - this.x(left), this.y(bottom) - this.y(top));
    }
    context.restore();
  }

  drawAxes(context) {
    const { rows, columns } = this.view;
    const { width, height } = this.frame;
    context.fillStyle = "#333";
    context.textAlign = "center";
    context.textBaseline = "bottom";
    const column = width / (columns[1] - columns[0]);
    const row = height / (rows[1] - rows[0]);
    for (const tick of ticks(...columns, width / 52)) context.fillText(tick, this.x(tick + 0.5), MARGIN.top - 16);
    if (column >= LETTER_PIXELS) {
      for (let i = columns[0]; i < columns[1]; i++) context.fillText(this.sequence[i - 1], this.x(i + 0.5), MARGIN.top - 2);
    }
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const tick of ticks(...rows, height / 24)) context.fillText(tick, MARGIN.left - 18, this.y(tick + 0.5));
    context.textAlign = "center";
    if (row >= LETTER_PIXELS) {
      for (let i = rows[0]; i < rows[1]; i++) context.fillText(this.sequence[i - 1], MARGIN.left - 8, this.y(i + 0.5));
    }
    context.fillText("attended residue", MARGIN.left + width / 2, 8);
    context.save();
    context.translate(8, MARGIN.top + height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("attending residue", 0, 0);
    context.restore();
  }

  drawKey(context, top, isSigned) {
    const [left, upper, width] = [MARGIN.left, MARGIN.top + this.frame.height + 8, Math.min(220, this.frame.width)];
    const strip = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) colour(this.palette, i / 255, strip.data, 4 * i);
    const sheet = element("canvas", { width: 256, height: 1 });
    sheet.getContext("2d").putImageData(strip, 0, 0);
    context.drawImage(sheet, left, upper, width, 10);
    context.textBaseline = "top";
    context.textAlign = "left";
    const first = this.scale.value === "logarithm" ? `≤ ${number(top / 1000)}` : isSigned ? "≤ 0" : "0";
    context.fillText(first, left, upper + 13);
    context.textAlign = "right";
    context.fillText(`≥ ${number(top)}`, left + width, upper + 13);
  }

  drawOverlay() {
    const { width, height } = this.frame;
    const context = sized(this.overlay, width + MARGIN.left + MARGIN.right, height + MARGIN.top + MARGIN.bottom);
    const [row, column] = this.cursor;
    this.clip(context);
    const frame = (colour, left, top, right, bottom) => {
      for (const [line, width] of [["#fff", 3], [colour, 1.5]]) {
        context.strokeStyle = line;
        context.lineWidth = width;
        context.strokeRect(left, top, right - left, bottom - top);
      }
    };
    const [right, bottom] = [MARGIN.left + width, MARGIN.top + height];
    const across = (colour, residue) => frame(colour, MARGIN.left - 2, this.y(residue), right + 2, this.y(residue + 1));
    across("#333", row);
    frame("#333", this.x(column), MARGIN.top - 2, this.x(column + 1), bottom + 2);
    if (this.chosen !== null) across(FORWARD, this.chosen);
    const start = this.brush?.[0] || this.corner;
    if (start) {
      const [left, top] = [this.x(Math.min(start[1], column)), this.y(Math.min(start[0], row))];
      const [end, low] = [this.x(Math.max(start[1], column) + 1), this.y(Math.max(start[0], row) + 1)];
      frame(FORWARD, left, top, end, low);
    }
    context.restore();
  }

  get linksInView() {
    const { rows, columns } = this.view;
    return this.map.links.filter(
      ({ from, to }) => from >= rows[0] && from < rows[1] && to >= columns[0] && to < columns[1],
    );
  }

  get leastShown() {
    return this.least * (this.most / this.least) ** (this.threshold.value / 1000) * (1 - 1e-6);
  }

  drawLinks() {
    const { rows, columns } = this.view;
    const [start, stop] = [Math.min(rows[0], columns[0]), Math.max(rows[1], columns[1])];
    const width = Math.max(160, this.plot.clientWidth); // a notebook lays widgets out after they are drawn
    const height = 220;
    const context = sized(this.arcs, width, height);
    const inner = width - MARGIN.left - MARGIN.right;
    const x = (residue) => MARGIN.left + (inner * (residue + 0.5 - start)) / (stop - start);
    const links = this.linksInView;
    const shown = links.filter((link) => link.weight >= this.leastShown);
    for (const { from, to, weight } of [...shown].reverse()) {
      const [left, right] = [x(Math.min(from, to)), x(Math.max(from, to))];
      const share = weight / this.most;
      context.globalAlpha = 0.25 + 0.75 * share;
      context.lineWidth = 0.75 + 2.25 * share;
      context.strokeStyle = to < from ? BACKWARD : FORWARD;
      context.beginPath();
      const radius = Math.max(6, ((height / 2 - 16) * (right - left)) / inner);
      const turn = to < from ? [Math.PI, 2 * Math.PI] : [0, Math.PI];
      context.ellipse((left + right) / 2, height / 2 + (to < from ? -8 : 8), (right - left) / 2, radius, 0, ...turn);
      context.stroke();
    }
    context.globalAlpha = 1;
    context.fillStyle = "#333";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const hasLetters = inner / (stop - start) >= LETTER_PIXELS;
    if (hasLetters) for (let i = start; i < stop; i++) context.fillText(this.sequence[i - 1], x(i), height / 2);
    else for (const tick of ticks(start, stop, inner / 52)) context.fillText(tick, x(tick), height / 2);
    context.textAlign = "left";
    context.fillStyle = BACKWARD;
    context.fillText("to earlier", 0, 10);
    context.fillStyle = FORWARD;
    context.fillText("to later", 0, height - 10);
    this.count.textContent =
      ` ${number(this.leastShown)}: ${shown.length} of ${links.length} here; of each head the ` +
      `${this.map.links.length} strongest between residues ${this.data.separation} or more apart`;
    this.list.replaceChildren(...shown.slice(0, 10).map((link) => element("li", {}, this.linkButton(link))));
  }

  linkButton({ from, to, weight }) {
    const text = `${this.residue(from)} → ${this.residue(to)}  ${number(weight)}`;
    const button = element("button", { type: "button", textContent: text });
    button.addEventListener("click", () => this.visit(from, to));
    return button;
  }

  /** Zoom to the tile of a link, whether its weights are exact or not. */
  visit(from, to) {
    this.cursor = [from, to];
    this.chosen = from;
    this.zoom({ rows: this.around(from, this.whole.rows), columns: this.around(to, this.whole.columns) });
    this.overlay.focus();
  }

  around(residue, whole) {
    const [first, size] = [whole[0], this.data.tileSize];
    const start = first + Math.floor((residue - first) / size) * size;
    return [start, Math.min(start + size, whole[1])];
  }

  // ---- structure

  /** The attention that each residue gets: from the chosen one, or on the average; undefined where it is not known. */
  received() {
    const { axes, map, whole } = this;
    const values = new Map();
    for (let column = whole.columns[0]; column < whole.columns[1]; column++) {
      const block = axes.columnBlocks[column - axes.firstColumn];
      if (this.chosen === null) {
        values.set(column, map.mean([0, this.data.rowEdges.length - 1], [block, block + 1]));
      } else {
        const exact = map.exact(this.chosen, column);
        values.set(column, exact === undefined ? map.block(axes.rowBlocks[this.chosen - axes.firstRow], block) : exact);
      }
    }
    return values;
  }

  drawStructure() {
    const { structure } = this.data;
    if (!structure) return;
    if (!this.model3d && !this.startStructure()) return;
    const values = this.received();
    const seen = [...this.positions.values()].map((residue) => values.get(residue)).filter((value) => value !== undefined);
    const top = Math.max(...seen) || 1;
    const bytes = [0, 0, 0, 0];
    const shade = (atom) => {
      const residue = this.positions.get(`${atom.resi}${(atom.icode || "").trim()}`);
      if (residue === this.chosen && residue !== undefined) return FORWARD;
      const value = values.get(residue);
      if (value === undefined) return "#bbbbbb";
      colour(this.palette, SCALES[this.scale.value](Math.max(0, value / top)), bytes, 0);
      return `rgb(${bytes[0]},${bytes[1]},${bytes[2]})`;
    };
    const chain = { chain: structure.chain };
    this.model3d.setStyle({}, { line: { color: "#dddddd" } });
    this.model3d.setStyle(chain, { cartoon: { colorfunc: shade }, stick: { colorfunc: shade, radius: 0.12 } });
    this.model3d.render();
    const who = this.chosen === null ? "all residues give on the average; click a row to choose one" : `${this.residue(this.chosen)} gives (it is orange)`;
    this.legend.textContent = `Attention that ${who}: from 0 (dark) to ${number(top)} (bright); grey: not known.`;
  }

  startStructure() {
    const { structure } = this.data;
    try {
      this.model3d = window.$3Dmol.createViewer(this.scene, { backgroundColor: "white" });
      this.model3d.addModel(structure.text, structure.format);
      this.model3d.zoomTo({ chain: structure.chain });
    } catch (error) {
      this.legend.textContent = `The structure cannot be drawn: ${error.message}`;
      return false;
    }
    return true;
  }
}
