// The page: a queue of uploads, a card for each, and the sliders.

import { drawLegend, outline, Palette } from "./drawing.js";

const SENT_AT_ONCE = 3;
const MOST_NEWS = 3; // Errors that are read out at once.
const MAP_SIDE = 512; // Maps are smooth: enough to colour and to outline.
const LEAST_WIDTH = 440; // Of saved pictures: their text must fit.
const BY_HAND = "(max-width: 700px), (pointer: coarse)"; // As in page.css.
// By verdict and truth, which is known of the examples.
const OUTCOMES = {
  anomaly: { anomaly: "found", normal: "false alarm" },
  normal: { anomaly: "missed", normal: "correct" },
};
const COUNTED = { anomaly: "anomalous", normal: "normal", found: "found", missed: "missed", "false alarm": "false alarms", correct: "correct" };
const DOT = " \u00b7 ";

const $ = (id) => document.getElementById(id);
const cards = new Set();
const waiting = [];
const news = []; // To be announced.
let pause;
let sending = 0;
const query = new URLSearchParams(location.search);
const model = query.get("model") ?? "0";
const tiles = query.get("tiles") ? "auto" : "";
let info;
// What the sliders say: opacity, image and pixel thresholds. A threshold that
// nobody chose is null until its slider moves: then there are no verdicts.
let shown;
let palette;
let followed; // The card that a phone's page scrolls to.

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
  constructor({ name, file, truth }) {
    this.file = file; // None of an example: the server has it.
    this.truth = truth;
    this.name = name;
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
    if (!cards.has(this)) return; // Removed since.
    this.error = message;
    const text = message.startsWith(this.name) ? message : `${this.name}: ${message}`;
    news.push(text);
    this.element.className = "failed";
    this.find("h2").remove();
    this.find(".state").textContent = text;
    $("refused").append(this.element); // A small one would leave a hole among the results.
  }

  async send() {
    const state = this.find(".state").lastChild;
    state.textContent = "looking";
    const limits = info.limits;
    if (this.file?.size > limits.max_bytes) {
      this.fail(`${this.name} has ${(this.file.size / 2 ** 20).toFixed(1)} MB; at most ${limits.max_bytes / 2 ** 20} MB can be sent`);
      return;
    }
    const url = `api/detect?model=${model}&tiles=${tiles}&name=${encodeURIComponent(this.name)}`;
    for (let attempt = 1; ; attempt++) {
      let response;
      try {
        this.file ??= await (await fetch(`api/examples/${this.name}`)).blob();
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
      state.textContent = response ? "waiting for the server" : "the server does not answer; trying again";
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
    this.levels = Uint8Array.from({ length: width * height }, (_, i) => pixels.data[4 * i]);
    this.highest = answer.map_max; // What level 255 stands for.
    for (const name of ["heat", "outline"]) {
      this.find(`.${name}`).width = width;
      this.find(`.${name}`).height = height;
    }
    this.image = image;
    for (const element of this.element.querySelectorAll(".shown")) {
      element.src = answer.image;
      element.alt = "";
    }
    this.find(".shown").alt = this.name;
    this.find(".remark").textContent = answer.note ?? "";
    this.answer = answer;
    this.find(".state").hidden = true;
    this.find(".found").hidden = false;
    this.update();
  }

  // The regions, and boxes in the image's own pixels.
  outline(context) {
    const { width, height } = context.canvas;
    if (shown.pixel === null) {
      context.clearRect(0, 0, width, height);
      return null;
    }
    const [right, down] = [this.answer.width / width, this.answer.height / height];
    const boxes = outline(context, this.levels, (255 * shown.pixel) / this.highest);
    return boxes.map((box) => [Math.floor(box[0] * right), Math.floor(box[1] * down), Math.ceil(box[2] * right), Math.ceil(box[3] * down)]);
  }

  get verdict() {
    if (shown.image === null) return null;
    return this.answer.image_score >= shown.image ? "anomaly" : "normal";
  }

  get outcome() {
    return OUTCOMES[this.verdict]?.[this.truth];
  }

  get texts() {
    const texts = [`score ${this.answer.image_score.toFixed(3)}`];
    const count = this.boxes?.length;
    if (this.answer.tiles) texts.push(`${this.answer.tiles} tiles`);
    if (this.boxes) texts.push(count === 1 ? "1 region" : `${count || "no"} regions`);
    return texts;
  }

  update() {
    if (!this.answer) return;
    if (this.drawnAt !== shown.pixel) {
      this.boxes = this.outline(this.find(".outline").getContext("2d"));
      palette.paint(this.find(".heat").getContext("2d"), this.levels, this.highest);
      this.drawnAt = shown.pixel;
    }
    const { verdict, outcome, texts } = this;
    this.element.className = verdict ?? "scored";
    if (outcome) this.element.classList.add(verdict === this.truth ? "right" : "wrong");
    this.find(".tag").textContent = outcome ?? verdict ?? "";
    this.find(".tag").hidden = this.find(".scale .mark").hidden = verdict === null;
    this.find(".text").textContent = texts.join(DOT);
    this.find(".outline").setAttribute("aria-label", `Anomaly map of ${this.name}: ${texts.at(-1)}`);
    this.find(".scale i").style.width = `${100 * this.answer.image_score}%`;
    this.find(".top").textContent = palette.top.toFixed(2);
    this.find(".ramp .mark").hidden = shown.pixel === null;
  }

  // The map over the image, and below what it says.
  savePicture() {
    const { naturalWidth, naturalHeight } = this.image;
    const factor = Math.max(1, Math.min(Math.ceil(LEAST_WIDTH / naturalWidth), Math.floor(1024 / naturalHeight)));
    const width = naturalWidth * factor;
    const height = naturalHeight * factor;
    const across = Math.max(width, LEAST_WIDTH);
    const em = Math.min(24, Math.round(across / 34));
    const canvas = make(across, height + 6 * em);
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const draw = (picture) => context.drawImage(picture, 0, 0, width, height);
    draw(this.image);
    context.globalAlpha = shown.opacity;
    draw(this.find(".heat"));
    context.globalAlpha = 1;
    draw(this.find(".outline"));
    context.translate(0.5 * em, height);
    const { verdict, outcome } = this;
    const [score, ...regions] = this.texts;
    const threshold = verdict && `threshold ${shown.image.toFixed(3)}`;
    const parts = [outcome ? `${outcome} (${verdict})` : verdict, score, threshold, ...regions];
    drawLegend(context, across - em, em, this.name, parts.filter(Boolean).join(DOT), palette, shown.opacity);
    canvas.toBlob((blob) => save(blob, `${this.name.replace(/\.\w+$/, "")}-heatmap.png`));
  }

  // As cops predict has it, by the thresholds of the sliders.
  toRow() {
    if (this.error) return { path: this.name, error: this.error };
    const { image_score, note, tiles, boxes } = this.answer;
    const chosen = info.thresholds;
    return {
      path: this.name,
      image_score,
      ...(note && { note }),
      ...(tiles && { tiles }),
      verdict: this.verdict,
      threshold: shown.image,
      threshold_method: shown.image === null ? null : shown.image === chosen?.image ? chosen.method : "slider",
      pixel_threshold: shown.pixel,
      boxes: shown.pixel === chosen?.pixel ? boxes : this.boxes,
    };
  }
}

const addFiles = (files) => add([...files].map((file) => ({ name: file.name || "image", file })));

const addExamples = (names) => add(names.map((name) => ({ name, truth: info.examples[name] })));

function add(sources) {
  const taken = sources.slice(0, info.limits.max_images - cards.size).map((source) => new Card(source));
  waiting.push(...taken);
  const left = sources.length - taken.length;
  notify(left && `${left} of ${sources.length} were left out: the page holds ${info.limits.max_images} images; clear it to go on`);
  if (matchMedia(BY_HAND).matches) {
    // There the list is below what was tapped.
    follow(taken[0]);
    if (left) $("notice").scrollIntoView();
  }
  showSummary();
  work();
}

function follow(card) {
  followed = card;
  card?.element.scrollIntoView();
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
        if (card === followed) follow(card); // It has grown, or moved.
        showSummary();
        work();
      });
  }
}

const limitsText = () =>
  `PNG, JPEG, BMP, TIFF or WebP; up to ${info.limits.max_bytes / 2 ** 20} MB, ${info.limits.max_pixels / 1e6} megapixels and ${info.limits.max_images} images`;

function notify(text) {
  $("notice").textContent = text || "";
  $("notice").hidden = !text;
  if (text) news.push(text);
}

// For those who do not see it: once nothing has changed for a while.
function announce() {
  clearTimeout(pause);
  pause = setTimeout(() => {
    const more = news.length - MOST_NEWS;
    const told = news.splice(0).slice(0, MOST_NEWS);
    if (more > 0) told.push(`and ${more} more`);
    $("live").textContent = [...told, $("status").textContent].join(". ");
  }, 500);
}

function showSummary() {
  const done = [...cards].filter((card) => card.answer);
  const failed = [...cards].filter((card) => card.error).length;
  const left = cards.size - done.length - failed;
  const parts = [`${cards.size} image${cards.size === 1 ? "" : "s"}`];
  if (left) parts.push(`${left} to go`);
  for (const label in COUNTED) {
    const count = done.filter((card) => (card.outcome ?? card.verdict) === label).length;
    if (count) parts.push(`${count} ${COUNTED[label]}`);
  }
  if (failed) parts.push(`${failed} failed`);
  $("status").textContent = cards.size ? parts.join(DOT) : "No images yet";
  $("json").disabled = $("csv").disabled = !(done.length + failed);
  $("clear").disabled = !cards.size;
  if (!left || news.length) announce();
}

function showSliders() {
  const texts = {
    opacity: `${Math.round(100 * shown.opacity)}%`,
    image: shown.image?.toFixed(3) ?? "not set",
    pixel: shown.pixel?.toFixed(3) ?? "not set",
  };
  for (const name in texts) {
    $(`${name}_value`).textContent = texts[name];
    $(name).setAttribute("aria-valuetext", texts[name]);
  }
  palette = new Palette(info.colors, shown.pixel);
  const style = document.documentElement.style;
  style.setProperty("--opacity", shown.opacity);
  style.setProperty("--image", `${100 * shown.image}%`);
  style.setProperty("--pixel", `${(100 * shown.pixel) / palette.top}%`);
  style.setProperty("--ramp", `linear-gradient(to right, ${palette.ramp()})`);
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
  const columns = ["path", "image_score", "verdict", "threshold", "threshold_method", "pixel_threshold", "boxes", "note", "error"];
  const cell = (value) => {
    let text = Array.isArray(value) ? JSON.stringify(value) : String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`; // No formula in a spreadsheet.
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = finished().map((row) => columns.map((name) => cell(row[name])).join(","));
  save(new Blob([[columns.join(","), ...lines, ""].join("\r\n")], { type: "text/csv" }), "results.csv");
}

function showExamples() {
  for (const name in info.examples) {
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
  all.onclick = () => addExamples(Object.keys(info.examples));
  $("examples").append(all);
}

function listen() {
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
  const choose = (model, tiles) => (location.search = `?model=${model}${tiles && "&tiles=auto"}`);
  $("model").onchange = (event) => choose(event.target.value, tiles);
  $("tiles").onchange = (event) => choose(model, event.target.checked ? "auto" : "");
  $("reset").onclick = reset;
  $("json").onclick = saveJson;
  $("csv").onclick = saveCsv;
  $("clear").onclick = () => {
    for (const card of cards) card.element.remove();
    cards.clear();
    add([]);
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
  document.ontouchmove = () => (followed = null); // The reader scrolls.
}

async function start() {
  try {
    info = await (await fetch(`api/info?model=${model}&tiles=${tiles}`)).json();
  } catch {
    info = { error: "The server does not answer: start it, and load this page again" };
  }
  if (info.error) {
    notify(info.error);
    announce();
    return;
  }
  info.models.forEach((title, number) => $("model").add(new Option(title, number)));
  $("model").value = info.model;
  $("choice").hidden = info.models.length === 1;
  $("tiles").checked = tiles;
  $("unfit").textContent = info.unfit && `No verdicts until a slider is moved: ${info.unfit}`;
  $("about").textContent = info.about;
  $("toy").hidden = !info.is_toy;
  $("limits").textContent = limitsText();
  const chosen = info.thresholds;
  if (chosen) $("chosen").textContent = `They were chosen so: ${chosen.method}.`;
  showExamples();
  listen();
  reset();
}

start();
