// An image that was given to the page, with what the server found in it.

import { ask, Refused } from "./server.js";
import { typeOf } from "./files.js";

/** The objects of an image and what the page knows of it. */
export class Picture {
  constructor(file) {
    this.file = file;
    this.name = file.name || "image";
    this.state = "waiting"; // then working, done or refused
    this.message = "";
    this.objects = [];
    this.size = null;
    this.key = null;
    this.preview = null; // as the browser itself decodes it, until tiles are there
    this.tiles = new Map();
    this.layers = new Map();
    this.view = null;
  }

  /** Send the image and take what was found in it. */
  async predict(limits) {
    this.state = "working";
    try {
      if (this.file.size > limits.max_bytes)
        throw new Refused(413, `the file has ${this.file.size} bytes and this server takes ${limits.max_bytes}.`);
      await this.send();
      this.state = "done";
    } catch (error) {
      this.state = "refused";
      this.message = error.message;
    }
  }

  async send() {
    const query = new URLSearchParams({ keep: true, polygons: true, score: 0, name: this.name.slice(0, 200) });
    const answer = await ask(`/predict?${query}`, {
      method: "POST",
      headers: { "Content-Type": typeOf(this.file), Accept: "application/json" },
      body: this.file,
    });
    const found = await answer.json();
    this.key = found.result;
    this.size = found.size;
    this.message = found.warnings.join(" ");
    const removed = new Set(this.objects.filter((object) => object.removed).map((object) => object.number));
    this.objects = found.objects.map((object) => new FoundObject(object, removed.has(object.object)));
  }

  /** Ask for more of the result; where the server has forgotten it, the image is sent once more. */
  async ask(suffix, options) {
    const key = this.key;
    try {
      return await ask(`/results/${key}${suffix}`, options);
    } catch (error) {
      if (error.status !== 404) throw error;
      if (this.key === key) {
        this.revived ??= this.send().finally(() => (this.revived = null));
        await this.revived;
      }
      return ask(`/results/${this.key}${suffix}`, options);
    }
  }

  /** Tell the server that the result is not needed any more. */
  forget() {
    if (this.key) ask(`/results/${this.key}`, { method: "DELETE" }).catch(() => {});
    for (const bitmap of [this.preview, ...this.tiles.values()]) bitmap?.close?.();
  }

  /** Objects of at least a score. */
  above(score) {
    return this.objects.filter((object) => object.score >= score);
  }

  /** Those of them that are not deleted. */
  kept(score) {
    return this.objects.filter((object) => object.score >= score && !object.removed);
  }
}

/** An object of an image; its outline is made when it is first drawn. */
export class FoundObject {
  constructor(found, removed) {
    this.number = found.object;
    this.name = found.class;
    this.label = found.label;
    this.score = found.score;
    this.box = found.box;
    this.area = found.area;
    this.removed = removed;
    this.polygons = found.polygons;
  }

  get path() {
    if (!this.drawn) {
      this.drawn = new Path2D();
      for (const ring of this.polygons.flat()) {
        this.drawn.moveTo(ring[0], ring[1]);
        for (let n = 2; n < ring.length; n += 2) this.drawn.lineTo(ring[n], ring[n + 1]);
        this.drawn.closePath();
      }
      this.polygons = null;
    }
    return this.drawn;
  }

  get words() {
    return `${this.name}, score ${this.score.toFixed(2)}, area ${this.area.toLocaleString()} px`;
  }
}
