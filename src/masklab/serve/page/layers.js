// The layers over an image: what its masks are made of.

import { ask } from "./server.js";

const SETTLED = 500; // milliseconds without a move, after which a part of a large image is asked for
const element = (id) => document.getElementById(id);

export class LayerControls {
  /** `page` has the picture that is shown, the part of it that is seen, and what to call when a layer has come. */
  constructor(page) {
    this.page = page;
    this.asked = 0;
  }

  /** Fill the controls with what a model has. */
  start(model) {
    for (const input of document.querySelectorAll('input[name="layer"]')) {
      input.disabled = Boolean(input.value) && !model.layers.includes(input.value);
      input.addEventListener("change", () => this.update());
    }
    element("layers").disabled = !model.layers.length;
    this.note(model.layers.length ? "" : `No layers: ${model.no_layers}`);
    const choice = element("layer-class");
    for (const [label, name] of model.classes.entries()) choice.append(new Option(name, label));
    choice.addEventListener("change", () => this.update());
    element("opacity").addEventListener("input", () => this.page.changed());
  }

  get name() {
    return document.querySelector('input[name="layer"]:checked').value;
  }

  get key() {
    return this.name === "semantic" ? `semantic?label=${element("layer-class").value}` : `${this.name}?label=0`;
  }

  /** The layer of a picture that is to be drawn, if there is one. */
  of(picture) {
    return (this.name && picture.layers.get(this.key)) || null;
  }

  note(text) {
    element("layer-note").textContent = text;
  }

  /** Show what is chosen, and ask for it. */
  async update() {
    const { name } = this;
    element("layer-options").hidden = !name;
    element("layer-class-label").hidden = name !== "semantic";
    element("heat").hidden = name !== "semantic";
    element("wheel").hidden = name !== "direction";
    if (name) this.note("");
    if (name === "direction") this.showWheel();
    this.page.changed();
    const picture = this.page.picture();
    if (!name || picture?.state !== "done" || (this.of(picture) && !this.of(picture).part)) return;
    await this.load(picture, picture.inParts ? this.page.seen() : null);
  }

  /** The view was moved: of a large image, the layer of the part that is seen now. */
  moved() {
    clearTimeout(this.timer);
    if (this.name && this.page.picture()?.inParts) this.timer = setTimeout(() => this.update(), SETTLED);
  }

  async load(picture, part) {
    const turn = ++this.asked;
    const { key } = this;
    const box = part ? `&box=${part.join(",")}` : "";
    this.note("Computing the layer …");
    try {
      const answer = await picture.ask(`/layers/${key}${box}`);
      const bitmap = await createImageBitmap(await answer.blob());
      const whole = [0, 0, picture.size.width, picture.size.height];
      picture.layers.set(key, { bitmap, box: part ?? whole, part: Boolean(part) });
      if (turn === this.asked) this.note("");
      this.page.changed();
    } catch (error) {
      if (error.status === 422 && !part) {
        picture.inParts = true;
        await this.load(picture, this.page.seen());
      } else if (turn === this.asked) this.note(error.message);
    }
  }

  async showWheel() {
    const wheel = element("wheel");
    if (wheel.src) return;
    try {
      wheel.src = URL.createObjectURL(await (await ask("/model/directions")).blob());
    } catch (error) {
      this.note(error.message);
    }
  }
}
