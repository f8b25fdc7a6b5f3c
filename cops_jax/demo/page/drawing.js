// Drawing anomaly maps: colours, outlines of regions, and the legend of saved pictures.

const LINE = 4; // Width of outlines in pixels of the map.
const LINE_COLOR = [0, 235, 255, 255];
const AROUND = [[-1, -1], [0, -1], [1, -1], [-1, 0], [1, 0], [-1, 1], [0, 1], [1, 1]];
const MIN_AREA = 1e-4; // Share of the map; the same as in cops_jax/thresholds.py.
const RAMP_COLORS = 33;
const BEHIND = "#8a8a8a"; // Background of the colour bar, in place of an image.

// Colours of anomaly maps. They depend on the pixel threshold, which can be null.
export class Palette {
  constructor(table, threshold) {
    this.table = table;
    this.threshold = threshold;
    // As in cops_jax/thresholds.py, except near 0, where only two colours would be left.
    this.full = threshold === null ? 1 : Math.max(2 * threshold, 0.01);
    this.top = Math.min(this.full, 1); // Upper end of the colour bar.
  }

  // Returns red, green and blue from 0 to 255, and opacity from 0 to 1.
  color(value) {
    const share = Math.min(value / this.full, 1);
    return [...this.table[Math.round(255 * share)], Math.sqrt(share)];
  }

  // Returns the colours of the colour bar for CSS.
  ramp() {
    return Array.from({ length: RAMP_COLORS }, (_, i) => `rgb(${this.color((i * this.top) / (RAMP_COLORS - 1))})`);
  }

  // Paints a map of levels. Level 255 is the highest value.
  paint(context, levels, highest) {
    const drawn = context.createImageData(context.canvas.width, context.canvas.height);
    const bytes = new Uint8ClampedArray(4 * 256);
    for (let level = 0; level < 256; level++) {
      const [red, green, blue, opacity] = this.color((level / 255) * highest);
      bytes.set([red, green, blue, 255 * opacity], 4 * level);
    }
    const colors = new Uint32Array(bytes.buffer);
    const pixels = new Uint32Array(drawn.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = colors[levels[i]];
    context.putImageData(drawn, 0, 0);
  }
}

// Outlines the regions whose levels reach `least`. Returns their boxes (left, top,
// right, bottom) in pixels of the map, the largest region first.
export function outline(context, levels, least) {
  const { width, height } = context.canvas;
  const drawn = context.createImageData(width, height);
  // 1 in regions, 2 in visited parts of regions, 3 outside the image. Regions have
  // no outline along the border of the image, because a frame around a whole image
  // would show nothing.
  const across = width + 2 * LINE;
  const mask = new Uint8Array(across * (height + 2 * LINE)).fill(3);
  const stack = new Int32Array(width * height);
  const near = AROUND.map(([dx, dy]) => dy * across + dx);
  for (let index = 0, y = 0; y < height; y++) {
    const row = (y + LINE) * across + LINE;
    for (let x = 0; x < width; x++, index++) mask[row + x] = levels[index] >= least;
  }
  const regions = [];
  for (let start = 0; start < mask.length; start++) {
    if (mask[start] !== 1) continue;
    const region = { area: 0, left: width, top: height, right: 0, bottom: 0 };
    stack[0] = start;
    mask[start] = 2;
    for (let size = 1; size; ) {
      const index = stack[--size];
      const x = (index % across) - LINE;
      const y = Math.floor(index / across) - LINE;
      region.area++;
      if (x < region.left) region.left = x;
      if (y < region.top) region.top = y;
      if (x >= region.right) region.right = x + 1;
      if (y >= region.bottom) region.bottom = y + 1;
      let isEdge = false;
      for (const step of near) {
        if (!mask[index + LINE * step]) isEdge = true;
        if (mask[index + step] === 1) {
          mask[index + step] = 2;
          stack[size++] = index + step;
        }
      }
      if (isEdge) drawn.data.set(LINE_COLOR, 4 * (y * width + x));
    }
    if (region.area >= MIN_AREA * width * height) regions.push(region);
  }
  context.putImageData(drawn, 0, 0);
  regions.sort((a, b) => b.area - a.area);
  return regions.map(({ left, top, right, bottom }) => [left, top, right, bottom]);
}

// Draws a bold title, a line of text and the colour bar, six em high together.
export function drawLegend(context, width, em, title, text, palette, opacity) {
  const write = (text, x, y, style = "") => {
    context.font = `${style} ${em}px system-ui, sans-serif`;
    if (context.measureText(text).width > width) {
      while (context.measureText(`${text}\u2026`).width > width) text = text.slice(0, -1);
      text += "\u2026";
    }
    context.fillText(text, x * width, y * em);
  };
  context.fillStyle = "black";
  write(title, 0, 1.4, "bold");
  write(text, 0, 2.8);
  const colors = palette.ramp();
  const gradient = context.createLinearGradient(0, 0, width, 0);
  colors.forEach((color, i) => gradient.addColorStop(i / (colors.length - 1), color));
  context.fillStyle = BEHIND;
  context.fillRect(0, 3.5 * em, width, 0.7 * em);
  context.globalAlpha = opacity;
  context.fillStyle = gradient;
  context.fillRect(0, 3.5 * em, width, 0.7 * em);
  context.globalAlpha = 1;
  context.fillStyle = "black";
  write("0", 0, 5.4);
  context.textAlign = "right";
  write(palette.top.toFixed(2), 1, 5.4);
  if (palette.threshold === null) return;
  context.fillRect((palette.threshold / palette.top) * width - 1, 3.2 * em, 2, 1.3 * em);
  context.textAlign = "center";
  write(`pixel threshold ${palette.threshold.toFixed(3)}`, 0.5, 5.4);
}
