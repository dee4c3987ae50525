// The page: what its controls do.

import { drawAreas } from "./chart.js";
import { droppedFiles, imagesOf } from "./files.js";
import { LayerControls } from "./layers.js";
import { Picture } from "./picture.js";
import { ask, onToken, Refused } from "./server.js";
import { Viewer } from "./viewer.js";

const PREVIEWED = 3e7; // bytes of a file that the browser itself shows until the server's tiles come
const element = (id) => document.getElementById(id);
const made = (name, text, properties = {}) => Object.assign(document.createElement(name), { textContent: text }, properties);
const counted = (count, word) => `${count.toLocaleString()} ${word}${count === 1 ? "" : "s"}`;

const pictures = [];
let model = null;
let current = null;
let busy = false;
let limit = 0.5;

const threshold = () => limit; // the slider's, or the model's own, which may lie between two of its steps
const byClass = () => document.querySelector('input[name="colour"]:checked').value === "class";
const classColour = (label) => model.colours[label % model.colours.length];

/** Class colours are the server's; those of objects go round the circle of hues by the golden angle. */
function colour(object) {
  return byClass() ? classColour(object.label) : `hsl(${(object.number * 137.508) % 360} 85% 60%)`;
}

const layers = new LayerControls({ picture: () => current, changed: () => viewer.draw(), seen: () => viewer.seen() });
const viewer = new Viewer(
  element("view"),
  {
    threshold,
    colour,
    masks: () => element("masks").checked,
    layer: (picture) => layers.of(picture),
    opacity: () => Number(element("opacity").value),
  },
  {
    moved: (view) => {
      element("zoom").textContent = `${Math.round(view.scale * 100)} %`;
      layers.moved();
    },
    hovered: showTip,
    clicked: (object) => {
      object.removed = !object.removed;
      say(`${object.words}: ${object.removed ? "deleted" : "kept"}.`);
      refresh();
    },
    focused: (object, n, count) =>
      say(`Object ${n} of ${count}: ${object.words}${object.removed ? ", deleted" : ""}. Enter ${object.removed ? "keeps" : "deletes"} it.`),
    failed: (error) => say(error.message, true),
  },
);

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

function showTip(object, at) {
  const tip = element("tip");
  tip.hidden = !object;
  if (!object) return;
  tip.textContent = `${object.name}\nscore ${object.score.toFixed(2)}, area ${object.area.toLocaleString()} px${object.removed ? "\ndeleted" : ""}`;
  const frame = element("frame");
  const x = Math.min(at[0] + 14, frame.clientWidth - tip.offsetWidth - 6);
  const y = Math.min(at[1] + 14, frame.clientHeight - tip.offsetHeight - 6);
  tip.style.transform = `translate(${Math.max(x, 4)}px, ${Math.max(y, 4)}px)`;
}

// ---- images

function add(given) {
  const { images, others } = imagesOf(given);
  if (others) say(`${counted(others, "file")} left out: no images by their names.`);
  if (!images.length) {
    say("There is no image among these files.", true);
    return;
  }
  const first = pictures.length;
  pictures.push(...images.map((file) => new Picture(file)));
  if (!current || current.state === "refused") select(pictures[first]);
  refresh();
  work();
}

/** Send the images that wait, one after the other. */
async function work() {
  if (busy || !model) return;
  busy = true;
  for (;;) {
    const picture = pictures.find((each) => each.state === "waiting");
    if (!picture) break;
    if (picture === current) preview(picture);
    const done = picture.predict(model);
    refresh();
    await done;
    if (picture === current) {
      viewer.show(picture);
      layers.update();
      say(picture.state === "refused" ? `${picture.name}: ${picture.message}` : summary(picture), picture.state === "refused");
    }
    refresh();
  }
  busy = false;
}

function summary(picture) {
  return `${picture.name}: ${counted(picture.kept(threshold()).length, "object")}. ${picture.message}`;
}

/** What the browser can decode is seen at once. */
async function preview(picture) {
  if (picture.file.size > PREVIEWED) return;
  try {
    picture.preview = await createImageBitmap(picture.file);
  } catch {
    return; // the server may know the format
  }
  picture.size ??= { width: picture.preview.width, height: picture.preview.height };
  if (picture === current) viewer.show(picture);
}

function select(picture) {
  current = picture;
  showTip(null);
  viewer.show(picture);
  layers.update();
  if (picture?.state === "done") say(summary(picture));
  else if (picture) say(picture.state === "refused" ? `${picture.name}: ${picture.message}` : "", picture.state === "refused");
  refresh();
}

function remove(picture) {
  const place = pictures.indexOf(picture);
  pictures.splice(place, 1);
  picture.forget();
  if (picture === current) select(pictures[Math.min(place, pictures.length - 1)] ?? null);
  refresh();
  (element("images").querySelectorAll(".pick")[Math.min(place, pictures.length - 1)] ?? element("files")).focus();
}

// ---- what is seen beside the image

function listed(picture) {
  const states = { waiting: "waiting", working: "looking for objects …" };
  const text =
    states[picture.state] ??
    (picture.state === "refused" ? `refused: ${picture.message}` : counted(picture.kept(threshold()).length, "object"));
  const pick = made("button", "", { type: "button", className: "pick", title: picture.name });
  pick.setAttribute("aria-current", String(picture === current));
  const state = made("span", text, { className: picture.state === "refused" ? "state bad" : "state" });
  pick.append(made("bdi", picture.name, { className: "name" }), state);
  pick.addEventListener("click", () => select(picture));
  const away = made("button", "×", { type: "button", className: "remove", disabled: picture.state === "working" });
  away.setAttribute("aria-label", `Remove ${picture.name}`);
  away.addEventListener("click", () => remove(picture));
  const item = made("li", "");
  item.append(pick, away);
  return item;
}

/** Bring everything beside the image up to date. */
function refresh() {
  const list = element("images");
  const place = [...list.children].findIndex((item) => item.contains(document.activeElement));
  const inner = document.activeElement.className;
  list.replaceChildren(...pictures.map(listed));
  if (place >= 0 && list.children[place]) list.children[place].querySelector(`.${inner}`)?.focus();
  element("threshold-now").textContent = limit.toFixed(2);
  element("empty").hidden = Boolean(current?.size);
  element("more").hidden = !pictures.length;
  const total = pictures.reduce((sum, picture) => sum + picture.kept(limit).length, 0);
  element("total").textContent = pictures.length > 1 ? `${counted(total, "object")} in all` : "";
  const kept = current?.kept(limit) ?? [];
  const deleted = current ? current.objects.filter((object) => object.removed).length : 0;
  element("count").textContent = kept.length.toLocaleString();
  element("count-words").textContent = `${kept.length === 1 ? "object" : "objects"}${deleted ? `, ${deleted} deleted` : ""}`;
  element("keep-all").disabled = !deleted;
  const words = drawAreas(element("areas"), kept.map((object) => object.area));
  element("areas").setAttribute("aria-label", words);
  element("areas-words").textContent = words;
  element("view").setAttribute("aria-label", current ? `${current.name}: ${counted(kept.length, "object")}` : "No image");
  for (const button of element("formats").querySelectorAll("button")) button.disabled = current?.state !== "done";
  for (const id of ["closer", "farther", "fit", "actual"]) element(id).disabled = !current?.size;
  element("classes").hidden = !byClass();
  viewer.draw();
}

// ---- downloads

async function download(format) {
  const picture = current;
  const objects = picture.kept(threshold()).map((object) => object.number);
  say(`Writing ${counted(objects.length, "object")} …`);
  try {
    const answer = await picture.ask("", {
      method: "POST",
      headers: { Accept: format.media_type, "Content-Type": "application/json" },
      body: JSON.stringify({ objects }),
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = picture.name.replace(/\.[^.]+$/, "") + format.ending;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say(`${link.download}: ${counted(objects.length, "object")}.`);
  } catch (error) {
    say(error.message, true);
  }
}

function addFormats() {
  for (const format of model.formats) {
    const button = made("button", format.name, { type: "button", disabled: true });
    button.title = format.holds.replace(/^\S+: /, "");
    button.append(made("small", format.ending));
    button.addEventListener("click", () => download(format));
    const item = made("li", "");
    item.append(button);
    element("formats").append(item);
  }
}

// ---- start

function addClasses() {
  for (const [label, name] of model.classes.entries()) {
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    mark.setAttribute("viewBox", "0 0 12 12");
    mark.setAttribute("aria-hidden", "true");
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [key, value] of Object.entries({ cx: 6, cy: 6, r: 6, fill: classColour(label) })) dot.setAttribute(key, value);
    mark.append(dot);
    const item = made("li", "");
    item.append(mark, made("bdi", name));
    element("classes").append(item);
  }
}

function askToken() {
  const dialog = element("token");
  const value = element("token-value");
  if (!dialog.open) dialog.showModal();
  return new Promise((done) => {
    element("token-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      done(value.value.trim());
    };
  });
}

function listen() {
  for (const id of ["files", "folder", "more-files", "more-folder"])
    element(id).addEventListener("change", ({ target }) => {
      add({ files: [...target.files], fromFolder: id.endsWith("folder") });
      target.value = "";
    });
  const frame = document.documentElement;
  frame.addEventListener("dragover", (event) => {
    event.preventDefault();
    element("frame").classList.add("over");
  });
  frame.addEventListener("dragleave", (event) => event.relatedTarget || element("frame").classList.remove("over"));
  frame.addEventListener("drop", async (event) => {
    event.preventDefault();
    element("frame").classList.remove("over");
    add(await droppedFiles(event.dataTransfer));
  });
  element("threshold").addEventListener("input", ({ target }) => setThreshold(Number(target.value)));
  element("reset").addEventListener("click", () => setThreshold(model.threshold));
  element("keep-all").addEventListener("click", () => {
    for (const object of current.objects) object.removed = false;
    say("All objects are kept again.");
    refresh();
  });
  for (const input of [...document.querySelectorAll('input[name="colour"]'), element("masks")])
    input.addEventListener("change", refresh);
  element("closer").addEventListener("click", () => viewer.zoom(1.5));
  element("farther").addEventListener("click", () => viewer.zoom(1 / 1.5));
  element("fit").addEventListener("click", () => viewer.fit());
  element("actual").addEventListener("click", () => viewer.picture.view && viewer.zoom(1 / viewer.picture.view.scale));
}

function setThreshold(value) {
  limit = value;
  element("threshold").value = value;
  refresh();
}

async function start() {
  onToken(askToken);
  listen();
  refresh();
  try {
    model = await (await ask("/model")).json();
  } catch (error) {
    say(error instanceof Refused ? error.message : String(error), true);
    return;
  }
  element("about").textContent = `${model.name}: ${model.classes.length === 1 ? model.classes[0] : counted(model.classes.length, "class").replace("classs", "classes")}`;
  element("limits").textContent = `Up to ${Math.floor(model.max_pixels / 1e6).toLocaleString()} million pixels and ${Math.floor(model.max_bytes / 2 ** 20).toLocaleString()} MiB each: PNG, JPEG, TIFF and others, 8 or 16 bits.`;
  viewer.tile = model.tile;
  addClasses();
  addFormats();
  layers.start(model);
  setThreshold(model.threshold);
  work();
}

start();
