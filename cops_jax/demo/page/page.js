// The page: a queue of uploads, a card for each, and the sliders.

const SENT_AT_ONCE = 3;
const MAP_SIDE = 512; // Maps are smooth: enough to colour and to outline.
const LINE = 4; // Width of outlines, in the map's pixels.
const LINE_COLOR = [0, 235, 255, 255];
const AROUND = [[-1, -1], [0, -1], [1, -1], [-1, 0], [1, 0], [-1, 1], [0, 1], [1, 1]];
const LEAST_AREA = 1e-4; // Share of a map; as in cops_jax/thresholds.py.

const $ = (id) => document.getElementById(id);
const cards = new Set();
const waiting = [];
let sending = 0;
const model = new URLSearchParams(location.search).get("model") ?? "0";
let info;
// What the sliders say: opacity, image and pixel thresholds. A threshold that
// nobody chose is null until its slider moves: then there are no verdicts.
let shown;

function make(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

async function load(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

class Card {
  constructor(file) {
    this.file = file;
    this.name = file.name || "image";
    this.element = $("card").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.element.querySelector(selector);
    this.find("h2").textContent = this.find("h2").title = this.name;
    this.find(".remove").setAttribute("aria-label", `Remove ${this.name}`);
    this.find(".remove").onclick = () => this.remove();
    this.find(".save").setAttribute("aria-label", `Heatmap of ${this.name} as PNG`);
    this.find(".save").onclick = () => this.savePicture();
    $("list").append(this.element);
    cards.add(this);
  }

  remove() {
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    cards.delete(this);
    this.element.remove();
    (next?.querySelector(".remove") ?? $("files")).focus();
    showSummary();
  }

  fail(message) {
    this.error = message;
    this.element.className = "failed";
    this.find(".state").textContent = message;
  }

  async send() {
    this.find(".state").lastChild.textContent = "looking";
    const limits = info.limits;
    if (this.file.size > limits.max_bytes) {
      this.fail(`${this.name} has ${(this.file.size / 2 ** 20).toFixed(1)} MB; at most ${limits.max_bytes / 2 ** 20} MB can be sent`);
      return;
    }
    const url = `api/detect?model=${model}&name=${encodeURIComponent(this.name)}`;
    for (let attempt = 1; ; attempt++) {
      let response;
      try {
        response = await fetch(url, { method: "POST", body: this.file });
      } catch {
        // As when it is full: the answer to a refused upload can be lost.
      }
      if (response && response.status !== 503) {
        const answer = await response.json();
        if (response.ok) await this.show(answer);
        else this.fail(answer.error);
        return;
      }
      if (attempt === 8 || !cards.has(this)) {
        this.fail(response ? (await response.json()).error : `${this.name} was not sent: the server does not answer`);
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 500 * attempt));
    }
  }

  async show(answer) {
    const [image, map] = await Promise.all([load(answer.image), load(answer.map)]);
    const factor = MAP_SIDE / Math.max(map.width, map.height);
    const width = Math.max(1, Math.round(map.width * factor));
    const height = Math.max(1, Math.round(map.height * factor));
    const context = make(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(map, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    this.map = Float32Array.from({ length: width * height }, (_, i) => (pixels.data[4 * i] / 255) * answer.map_max);
    for (let i = 0; i < this.map.length; i++) {
      const value = Math.min(this.map[i] / info.full_heat, 1);
      pixels.data.set(info.colors[Math.round(255 * value)], 4 * i);
      pixels.data[4 * i + 3] = 255 * Math.sqrt(value);
    }
    for (const name of ["heat", "outline"]) {
      this.find(`.${name}`).width = width;
      this.find(`.${name}`).height = height;
    }
    this.find(".heat").getContext("2d").putImageData(pixels, 0, 0);
    this.image = image;
    for (const element of this.element.querySelectorAll(".shown")) {
      element.src = answer.image;
      element.alt = "";
    }
    this.find(".shown").alt = this.name;
    this.answer = answer;
    this.find(".state").hidden = true;
    this.find(".found").hidden = false;
    this.update();
  }

  // The regions at or above the threshold: their outlines, and boxes in the
  // image's own pixels, the largest first.
  outline() {
    const canvas = this.find(".outline");
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    if (shown.pixel === null) {
      context.clearRect(0, 0, width, height);
      this.boxes = null;
      return;
    }
    const drawn = context.createImageData(width, height);
    // 1 inside of regions, 2 where seen; with a border of zeros.
    const across = width + 2 * LINE;
    const mask = new Uint8Array(across * (height + 2 * LINE));
    const stack = new Int32Array(width * height);
    const near = AROUND.map(([dx, dy]) => dy * across + dx);
    for (let index = 0, y = 0; y < height; y++) {
      const row = (y + LINE) * across + LINE;
      for (let x = 0; x < width; x++, index++) mask[row + x] = this.map[index] >= shown.pixel;
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
      if (region.area >= LEAST_AREA * width * height) regions.push(region);
    }
    context.putImageData(drawn, 0, 0);
    const [right, down] = [this.answer.width / width, this.answer.height / height];
    this.boxes = regions
      .sort((a, b) => b.area - a.area)
      .map((box) => [Math.floor(box.left * right), Math.floor(box.top * down), Math.ceil(box.right * right), Math.ceil(box.bottom * down)]);
  }

  update() {
    if (!this.answer) return;
    if (this.outlinedAt !== shown.pixel) {
      this.outline();
      this.outlinedAt = shown.pixel;
    }
    const score = this.answer.image_score;
    const verdict = verdictOf(score);
    this.element.className = verdict ?? "scored";
    this.find(".tag").textContent = verdict ?? "";
    this.find(".tag").hidden = this.find(".scale b").hidden = verdict === null;
    const texts = [`score ${score.toFixed(3)}`];
    const count = this.boxes?.length;
    if (this.boxes) texts.push(count === 1 ? "1 region" : `${count || "no"} regions`);
    this.find(".text").textContent = texts.join(" \u00b7 ");
    this.find(".outline").setAttribute("aria-label", `Heatmap of ${this.name}: ${texts.at(-1)}`);
    this.find(".heat").style.opacity = shown.opacity;
    this.find(".scale i").style.width = `${100 * score}%`;
    this.find(".scale b").style.left = `${100 * shown.image}%`;
  }

  savePicture() {
    const canvas = make(this.image.naturalWidth, this.image.naturalHeight);
    const context = canvas.getContext("2d");
    const draw = (picture) => context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    draw(this.image);
    context.globalAlpha = shown.opacity;
    draw(this.find(".heat"));
    context.globalAlpha = 1;
    draw(this.find(".outline"));
    canvas.toBlob((blob) => save(blob, `${this.name.replace(/\.\w+$/, "")}-heatmap.png`));
  }

  // As cops predict has it, by the thresholds of the sliders.
  toRow() {
    if (this.error) return { path: this.name, error: this.error };
    const { image_score, boxes } = this.answer;
    const chosen = info.thresholds;
    return {
      path: this.name,
      image_score,
      verdict: verdictOf(image_score),
      threshold: shown.image,
      threshold_method: shown.image === null ? null : shown.image === chosen?.image ? chosen.method : "slider",
      pixel_threshold: shown.pixel,
      boxes: shown.pixel === chosen?.pixel ? boxes : this.boxes,
    };
  }
}

function verdictOf(score) {
  if (shown.image === null) return null;
  return score >= shown.image ? "anomaly" : "normal";
}

function addFiles(files) {
  const room = info.limits.max_images - cards.size;
  const taken = [...files].slice(0, room);
  for (const file of taken) waiting.push(new Card(file));
  const left = files.length - taken.length;
  $("limits").classList.toggle("over", left > 0);
  $("limits").textContent = left
    ? `${left} of ${files.length} were left out: the page holds ${info.limits.max_images} images. Clear it to go on.`
    : limitsText();
  showSummary();
  work();
}

function work() {
  while (waiting.length && sending < SENT_AT_ONCE) {
    const card = waiting.shift();
    if (!cards.has(card)) continue;
    sending++;
    card
      .send()
      .catch((error) => card.fail(`${card.name} cannot be shown: ${error.message}`))
      .finally(() => {
        sending--;
        card.file = null;
        showSummary();
        work();
      });
  }
}

const limitsText = () =>
  `PNG, JPEG, BMP, TIFF or WebP; up to ${info.limits.max_bytes / 2 ** 20} MB, ${info.limits.max_pixels / 1e6} megapixels and ${info.limits.max_images} images`;

function showSummary() {
  const done = [...cards].filter((card) => card.answer);
  const failed = [...cards].filter((card) => card.error).length;
  const anomalies = done.filter((card) => verdictOf(card.answer.image_score) === "anomaly").length;
  const left = cards.size - done.length - failed;
  const parts = [`${cards.size} image${cards.size === 1 ? "" : "s"}`];
  if (left) parts.push(`${left} to go`);
  if (done.length && shown.image !== null) parts.push(`${anomalies} anomalous`, `${done.length - anomalies} normal`);
  if (failed) parts.push(`${failed} failed`);
  $("status").textContent = cards.size ? parts.join(" \u00b7 ") : "No images yet";
  $("json").disabled = $("csv").disabled = !(done.length + failed);
  $("clear").disabled = !cards.size;
}

function showSliders() {
  $("opacity_value").textContent = `${Math.round(100 * shown.opacity)}%`;
  for (const name of ["image", "pixel"]) $(`${name}_value`).textContent = shown[name]?.toFixed(3) ?? "not set";
  for (const card of cards) card.update();
  showSummary();
}

function reset() {
  shown = { opacity: 0.7, image: info.thresholds?.image ?? null, pixel: info.thresholds?.pixel ?? null };
  for (const name in shown) $(name).value = shown[name] ?? 0.5;
  showSliders();
}

const finished = () => [...cards].filter((card) => card.answer || card.error).map((card) => card.toRow());

function saveJson() {
  save(new Blob([`${JSON.stringify(finished(), null, 2)}\n`], { type: "application/json" }), "results.json");
}

function saveCsv() {
  const columns = ["path", "image_score", "verdict", "threshold", "threshold_method", "pixel_threshold", "boxes", "error"];
  const cell = (value) => {
    let text = Array.isArray(value) ? JSON.stringify(value) : String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`; // No formula in a spreadsheet.
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = finished().map((row) => columns.map((name) => cell(row[name])).join(","));
  save(new Blob([[columns.join(","), ...lines, ""].join("\r\n")], { type: "text/csv" }), "results.csv");
}

async function addExamples(names) {
  const files = names.map(async (name) => {
    const response = await fetch(`api/examples/${name}`);
    return new File([await response.blob()], name, { type: "image/png" });
  });
  addFiles(await Promise.all(files));
}

function showExamples() {
  for (const name of info.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "example";
    const image = document.createElement("img");
    image.src = `api/examples/${name}`;
    image.alt = button.title = `Example ${name}`;
    button.append(image);
    button.onclick = () => addExamples([name]);
    $("examples").append(button);
  }
  const all = document.createElement("button");
  all.type = "button";
  all.id = "all_examples";
  all.textContent = "all examples";
  all.onclick = () => addExamples(info.examples);
  $("examples").append(all);
}

let isDue = false;
for (const name of ["opacity", "image", "pixel"]) {
  $(name).oninput = () => {
    shown[name] = Number($(name).value);
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      showSliders();
    });
  };
}
$("reset").onclick = reset;
$("json").onclick = saveJson;
$("csv").onclick = saveCsv;
$("clear").onclick = () => {
  cards.clear();
  $("list").replaceChildren();
  addFiles([]);
};
$("files").onchange = () => {
  addFiles($("files").files);
  $("files").value = ""; // The same file may be chosen again.
};
document.ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
document.ondragleave = () => $("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  addFiles(event.dataTransfer.files);
};
document.onpaste = (event) => addFiles(event.clipboardData.files);

info = await (await fetch(`api/info?model=${model}`)).json();
info.models.forEach((title, number) => $("model").add(new Option(title, number)));
$("model").value = info.model;
$("model").onchange = (event) => (location.search = `?model=${event.target.value}`);
$("choice").hidden = info.models.length === 1;
$("about").textContent = info.about;
$("toy").hidden = !info.is_toy;
$("limits").textContent = limitsText();
showExamples();
reset();
