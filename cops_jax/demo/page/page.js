// The page: a queue of uploads, a card for each image, and the sliders.

import { Card, DOT, save, view } from "./card.js";
import { Palette } from "./drawing.js";

const SENT_AT_ONCE = 3;
const MAX_FAILURES = 4; // Failed requests in a row after which the page stops sending.
const MAX_NEWS = 3; // Errors that screen readers announce together.
const TOUCH = "(max-width: 700px), (pointer: coarse)"; // As in page.css.
const COUNTED = { anomaly: "anomalous", normal: "normal", found: "found", missed: "missed", "false alarm": "false alarms", correct: "correct" };

const $ = (id) => document.getElementById(id);
const cards = new Set();
const news = []; // Texts to announce.
const query = new URLSearchParams(location.search);
let choice = toChoice(query.get("model") ?? "0", query.get("tiles"));
let info; // The server's answer about the chosen model and tiles.
let calls = new AbortController(); // Aborts the requests for the choice.
let queue = [];
let sending = 0;
let pause;
let followed; // The card that a phone scrolls to.

function toChoice(model, tiles) {
  return `model=${model}&tiles=${tiles ? "auto" : ""}`;
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const addFiles = (files) => add([...files].map((file) => ({ name: file.name || "image", file })));

const addExamples = (names) => add(names.map((name) => ({ name, truth: info.examples[name] })));

function add(sources) {
  if (!info) return; // The limits are not known yet.
  const taken = sources.slice(0, info.limits.max_images - cards.size).map((source) => new Card(source, remove));
  for (const card of taken) cards.add(card);
  queue.push(...taken);
  const left = sources.length - taken.length;
  notify(left && `Added ${taken.length} of ${sources.length} images, because the limit is ${info.limits.max_images}. Clear the page to add more`);
  arrange();
  if (matchMedia(TOUCH).matches) {
    // On a phone, the list is below the button that was tapped.
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

// Puts the results in order. An element that is not moved keeps the focus.
function arrange() {
  const shown = [...cards].filter((card) => !card.error);
  const score = (card) => card.answer?.image_score ?? -1;
  if ($("by_score").checked) shown.sort((a, b) => score(b) - score(a));
  shown.forEach(({ element }, place) => {
    const there = $("list").children[place];
    if (there !== element) $("list").insertBefore(element, there ?? null);
  });
}

function remove(card) {
  const visible = [...card.element.parentElement.children].filter((element) => element.offsetParent);
  const place = visible.indexOf(card.element);
  const next = visible[place + 1] ?? visible[place - 1];
  cards.delete(card);
  card.element.remove();
  (next?.querySelector(".remove") ?? $("files")).focus();
  showSummary();
}

function fail(card, message) {
  if (!cards.has(card)) return; // The card was removed in the meantime.
  card.fail(message);
  news.push(card.state);
  $("refused").append(card.element); // A small card would leave a gap in the results.
}

// Uploads an image and returns the answer. Tries again while the server is full or loading.
async function send(card, signal) {
  card.say("scoring");
  const { max_bytes } = info.limits;
  if (card.file?.size > max_bytes) throw new Error(`${card.name} is too large: it has ${(card.file.size / 2 ** 20).toFixed(1)} MB, and the limit is ${max_bytes / 2 ** 20} MB`);
  await card.file?.slice(0, 1).arrayBuffer(); // Fails if the file was deleted, so that this does not count as a failed request.
  const url = `api/detect?${choice}&name=${encodeURIComponent(card.name)}`;
  for (let attempt = 1, failures = 0; cards.has(card); attempt++) {
    let response;
    try {
      card.file ??= await (await fetch(`api/examples/${card.name}`, { signal })).blob();
      response = await fetch(url, { method: "POST", body: card.file, signal });
    } catch {
      // The answer of a full server to a refused upload can be lost, too.
    }
    if (response && response.status !== 503) {
      const answer = await response.json();
      if (response.ok) return answer;
      throw new Error(answer.error);
    }
    signal.throwIfAborted();
    failures = response ? 0 : failures + 1;
    if (failures === MAX_FAILURES) stop();
    else card.say(response ? "waiting for the server" : "the server does not answer; trying again");
    await sleep(500 * Math.min(attempt, 8));
    signal.throwIfAborted();
  }
}

function work() {
  const { signal } = calls;
  while (queue.length && sending < SENT_AT_ONCE && !signal.aborted) {
    const card = queue.shift();
    if (!cards.has(card)) continue;
    sending++;
    send(card, signal)
      .then((answer) => answer && card.show(answer, signal))
      .catch((error) => signal.aborted || fail(card, error.message))
      .finally(() => {
        if (signal.aborted) return;
        sending--;
        arrange();
        if (card === followed) follow(card); // The card has grown or moved.
        showSummary();
        work();
      });
  }
}

// Stops sending until the user retries, because the server does not answer.
function stop() {
  calls.abort();
  for (const card of cards) if (card.isWaiting) card.say("waiting");
  $("loading").hidden = true;
  $("away").hidden = false;
  news.push($("away").firstChild.textContent);
  announce();
}

const limitsText = () =>
  `PNG, JPEG, BMP, TIFF or WebP; up to ${info.limits.max_bytes / 2 ** 20} MB, ${info.limits.max_pixels / 1e6} megapixels and ${info.limits.max_images} images`;

function notify(text) {
  $("notice").textContent = text || "";
  $("notice").hidden = !text;
  if (text) news.push(text);
}

// Announces errors and the status to screen readers once nothing changes.
function announce() {
  clearTimeout(pause);
  pause = setTimeout(() => {
    const more = news.length - MAX_NEWS;
    const texts = news.splice(0).slice(0, MAX_NEWS);
    if (more > 0) texts.push(`and ${more} more`);
    $("live").textContent = [...texts, $("status").textContent].join(". ");
  }, 500);
}

function showSummary() {
  const done = [...cards].filter((card) => card.answer);
  const failed = [...cards].filter((card) => card.error).length;
  const left = [...cards].filter((card) => card.isWaiting).length;
  const parts = [`${cards.size} image${cards.size === 1 ? "" : "s"}`];
  if (left) parts.push(`${left} remaining`);
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
    opacity: `${Math.round(100 * view.opacity)}%`,
    image: view.image?.toFixed(3) ?? "not set",
    pixel: view.pixel?.toFixed(3) ?? "not set",
  };
  for (const name in texts) {
    $(`${name}_value`).textContent = texts[name];
    $(name).setAttribute("aria-valuetext", texts[name]);
  }
  view.palette = new Palette(info.colors, view.pixel);
  const style = document.documentElement.style;
  style.setProperty("--opacity", view.opacity);
  style.setProperty("--image", `${100 * view.image}%`);
  style.setProperty("--pixel", `${(100 * view.pixel) / view.palette.top}%`);
  style.setProperty("--ramp", `linear-gradient(to right, ${view.palette.ramp()})`);
  for (const card of cards) card.update();
  showSummary();
}

function reset() {
  const { image = null, pixel = null } = info.thresholds ?? {};
  for (const [name, value] of Object.entries({ opacity: 0.7, image, pixel })) {
    view[name] = value;
    $(name).value = value ?? 0.5;
  }
  showSliders();
}

const finished = () => [...cards].filter((card) => card.answer || card.error).map((card) => card.toRow());

function saveJson() {
  save(new Blob([`${JSON.stringify(finished(), null, 2)}\n`], { type: "application/json" }), "results.json");
}

function saveCsv() {
  const columns = ["path", "image_score", "verdict", "threshold", "threshold_method", "pixel_threshold", "boxes", "tiles", "note", "error"];
  const cell = (value) => {
    let text = Array.isArray(value) ? JSON.stringify(value) : String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`; // A spreadsheet would run it as a formula.
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
  all.textContent = "All examples";
  all.onclick = () => addExamples(Object.keys(info.examples));
  $("examples").append(all);
}

function listen() {
  let isDue = false;
  for (const name of ["opacity", "image", "pixel"]) {
    $(name).oninput = () => {
      view[name] = Number($(name).value);
      if (isDue) return;
      isDue = true;
      requestAnimationFrame(() => {
        isDue = false;
        showSliders();
      });
    };
  }
  $("model").onchange = $("tiles").onchange = choose;
  $("by_score").onchange = arrange;
  $("retry").onclick = begin;
  $("large").onclick = () => $("large").close();
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
    $("files").value = ""; // Allows choosing the same file again.
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
  document.ontouchmove = () => (followed = null); // The user scrolls.
}

function choose() {
  choice = toChoice($("model").value, $("tiles").checked);
  history.replaceState(null, "", `?${choice}`);
  for (const card of cards) card.restart();
  arrange();
  showSummary();
  begin();
}

// Requests information about the choice and sends the waiting images.
async function begin() {
  calls.abort();
  calls = new AbortController();
  sending = Infinity; // Sends nothing until the answer arrives.
  const { signal } = calls;
  $("away").hidden = true;
  $("loading").hidden = Boolean(info);
  let answer;
  try {
    let response;
    while ((response = await fetch(`api/info?${choice}`, { signal })).status === 503) {
      $("loading").hidden = false;
      await sleep(500);
    }
    answer = await response.json();
  } catch {
    if (!signal.aborted) stop();
    return;
  }
  if (signal.aborted) return;
  $("loading").hidden = true;
  if (answer.error) {
    notify(answer.error);
    announce();
    return;
  }
  showInfo(answer);
  sending = 0;
  queue = [...cards].filter((card) => card.isWaiting);
  work();
}

function showInfo(answer) {
  const isFirst = !info;
  const isOther = choice !== info?.choice;
  info = { ...answer, choice };
  if (isFirst) {
    info.models.forEach((title, number) => $("model").add(new Option(title, number)));
    showExamples();
  }
  $("model").value = info.model;
  $("choice").hidden = info.models.length === 1;
  $("tiles").checked = choice.endsWith("auto");
  $("unfit").textContent = info.unfit && `There are no verdicts until you move a slider: ${info.unfit}`;
  $("about").textContent = info.about;
  $("toy").hidden = !info.is_toy;
  $("limits").textContent = limitsText();
  const chosen = (view.chosen = info.thresholds);
  $("chosen").textContent = chosen ? `They start at the thresholds that were chosen for these prompts (${chosen.method}).` : "";
  if (isOther) reset();
  $("page").className = "";
}

listen();
begin();
