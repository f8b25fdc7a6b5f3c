// The card of an image: its score, anomaly map and verdict at the sliders' thresholds.

import { drawLegend, outline } from "./drawing.js";

const MAP_SIDE = 512; // Pixels; more add no detail, because maps are smooth.
const MIN_WIDTH = 440; // Width of saved pictures into which their text fits.
// Outcomes by verdict and truth, which is known for the examples only.
const OUTCOMES = {
  anomaly: { anomaly: "found", normal: "false alarm" },
  normal: { anomaly: "missed", normal: "correct" },
};
export const DOT = " \u00b7 ";

// Values of the sliders: opacity, image threshold and pixel threshold. Without
// chosen thresholds, a threshold is null until its slider is moved, and there are
// no verdicts. `view` also has the palette of maps, and the chosen thresholds or null.
export const view = {};

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

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export class Card {
  constructor({ name, file, truth }, remove) {
    this.file = file; // Undefined for an example, which the server has.
    this.truth = truth;
    this.name = name;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.element.querySelector(selector);
    this.find("h2").textContent = this.find("h2").title = this.name;
    this.find(".remove").setAttribute("aria-label", `Remove ${this.name}`);
    this.find(".remove").onclick = () => remove(this);
    this.find(".save").setAttribute("aria-label", `Save the heatmap of ${this.name} as PNG`);
    this.find(".save").onclick = () => this.savePicture();
    this.find(".enlarge").setAttribute("aria-label", `Enlarge ${this.name}`);
    this.find(".enlarge").onclick = this.find(".pair").onclick = () => this.enlarge();
  }

  get isWaiting() {
    return !this.answer && !this.error;
  }

  // The error, or the text that is shown until there are results.
  get state() {
    return this.find(".state").textContent;
  }

  say(text) {
    this.find(".state").lastChild.textContent = text;
  }

  restart() {
    this.answer = this.error = this.drawnAt = undefined;
    this.element.className = "";
    this.find(".state").hidden = false;
    this.find(".found").hidden = true;
    this.say("waiting");
  }

  fail(message) {
    this.error = message;
    this.element.className = "failed";
    this.say(message.startsWith(this.name) ? message : `${this.name}: ${message}`);
  }

  async show(answer, signal) {
    const [image, map] = await Promise.all([load(answer.image), load(answer.map)]);
    signal.throwIfAborted();
    const factor = MAP_SIDE / Math.max(map.width, map.height);
    const width = Math.max(1, Math.round(map.width * factor));
    const height = Math.max(1, Math.round(map.height * factor));
    const context = make(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(map, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    this.levels = Uint8Array.from({ length: width * height }, (_, i) => pixels.data[4 * i]);
    this.highest = answer.map_max; // The value of level 255.
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

  // Draws the outlines of the regions and returns their boxes in image pixels.
  outline(context) {
    const { width, height } = context.canvas;
    if (view.pixel === null) {
      context.clearRect(0, 0, width, height);
      return null;
    }
    const [right, down] = [this.answer.width / width, this.answer.height / height];
    const boxes = outline(context, this.levels, (255 * view.pixel) / this.highest);
    return boxes.map((box) => [Math.floor(box[0] * right), Math.floor(box[1] * down), Math.ceil(box[2] * right), Math.ceil(box[3] * down)]);
  }

  get verdict() {
    if (view.image === null) return null;
    return this.answer.image_score >= view.image ? "anomaly" : "normal";
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
    if (this.drawnAt !== view.pixel) {
      this.boxes = this.outline(this.find(".outline").getContext("2d"));
      view.palette.paint(this.find(".heat").getContext("2d"), this.levels, this.highest);
      this.drawnAt = view.pixel;
    }
    const { verdict, outcome, texts } = this;
    this.element.className = verdict ?? "scored";
    if (outcome) this.element.classList.add(verdict === this.truth ? "right" : "wrong");
    this.find(".tag").textContent = outcome ?? verdict ?? "";
    this.find(".tag").hidden = this.find(".scale .mark").hidden = verdict === null;
    this.find(".text").textContent = texts.join(DOT);
    this.find(".outline").setAttribute("aria-label", `Anomaly map of ${this.name}: ${texts.at(-1)}`);
    this.find(".scale i").style.width = `${100 * this.answer.image_score}%`;
    this.find(".top").textContent = view.palette.top.toFixed(2);
    this.find(".ramp .mark").hidden = view.pixel === null;
  }

  // Shows the card's pictures as large as the window.
  enlarge() {
    const copy = this.find(".found").cloneNode(true);
    const drawn = this.element.querySelectorAll("canvas");
    copy.querySelectorAll("canvas").forEach((canvas, i) => canvas.getContext("2d").drawImage(drawn[i], 0, 0));
    const dialog = document.getElementById("large");
    dialog.className = this.element.className;
    dialog.style.setProperty("--shape", this.answer.width / this.answer.height);
    dialog.querySelector("h2").textContent = this.name;
    dialog.querySelector(".found").replaceWith(copy);
    dialog.showModal();
  }

  // Saves a picture: the map over the image, and the results and a legend below.
  savePicture() {
    const { naturalWidth, naturalHeight } = this.image;
    const factor = Math.max(1, Math.min(Math.ceil(MIN_WIDTH / naturalWidth), Math.floor(1024 / naturalHeight)));
    const width = naturalWidth * factor;
    const height = naturalHeight * factor;
    const across = Math.max(width, MIN_WIDTH);
    const em = Math.min(24, Math.round(across / 34));
    const canvas = make(across, height + 6 * em);
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const draw = (picture) => context.drawImage(picture, 0, 0, width, height);
    draw(this.image);
    context.globalAlpha = view.opacity;
    draw(this.find(".heat"));
    context.globalAlpha = 1;
    draw(this.find(".outline"));
    context.translate(0.5 * em, height);
    const { verdict, outcome } = this;
    const [score, ...regions] = this.texts;
    const threshold = verdict && `threshold ${view.image.toFixed(3)}`;
    const parts = [outcome ? `${outcome} (${verdict})` : verdict, score, threshold, ...regions];
    drawLegend(context, across - em, em, this.name, parts.filter(Boolean).join(DOT), view.palette, view.opacity);
    canvas.toBlob((blob) => save(blob, `${this.name.replace(/\.\w+$/, "")}-heatmap.png`));
  }

  // Returns the row that `cops predict` would write with the sliders' thresholds.
  toRow() {
    if (this.error) return { path: this.name, error: this.error };
    const { image_score, note, tiles, boxes } = this.answer;
    const { chosen } = view;
    return {
      path: this.name,
      image_score,
      ...(note && { note }),
      ...(tiles && { tiles }),
      verdict: this.verdict,
      threshold: view.image,
      threshold_method: view.image === null ? null : view.image === chosen?.image ? chosen.method : "slider",
      pixel_threshold: view.pixel,
      boxes: view.pixel === chosen?.pixel ? boxes : this.boxes,
    };
  }
}
