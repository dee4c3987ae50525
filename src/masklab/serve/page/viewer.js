// The image on its canvas: tiles, a layer and objects, moved and zoomed by mouse, touch and keys.

const MOST_TILES = 240; // that are kept of an image
const AT_ONCE = 4; // tiles that are asked for
const [CLOSEST, STEP] = [40, 1.25]; // pixels of the screen for one of the image; factor of a key or button
const CLICK = 4; // pixels that a pointer may move in a click
const SMALL = 2.5; // pixels of the screen, below which an object is drawn as its box

export class Viewer {
  /** `look` gives what is drawn: threshold, colour(object), masks, layer, opacity; `told` is called on events. */
  constructor(canvas, look, told) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.look = look;
    this.told = told;
    this.picture = null;
    this.tile = 512;
    this.loading = new Set();
    this.pointers = new Map();
    this.hovered = this.focused = null;
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.listen();
  }

  /** Show a picture, where it was left or whole. */
  show(picture) {
    this.picture = picture;
    this.hovered = this.focused = null;
    if (picture?.size && !picture.view) this.fit();
    this.draw();
  }

  get size() {
    return this.picture?.size ?? null;
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (this.size && this.picture.view?.whole) this.fit();
    this.draw();
  }

  // ---- where

  /** The whole image. */
  fit() {
    if (!this.size) return;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = Math.min(width / this.size.width, height / this.size.height, CLOSEST) || 1;
    const x = (this.size.width - width / scale) / 2;
    const y = (this.size.height - height / scale) / 2;
    this.picture.view = { x, y, scale, whole: true };
    this.moved();
  }

  /** Zoom by a factor around a point of the canvas, its middle by default. */
  zoom(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const view = this.picture?.view;
    if (!view) return;
    const least = Math.min(1, this.canvas.clientWidth / this.size.width, this.canvas.clientHeight / this.size.height) / 2;
    const scale = Math.min(Math.max(view.scale * factor, least), CLOSEST);
    const [x, y] = [view.x + px / view.scale - px / scale, view.y + py / view.scale - py / scale];
    this.place({ x, y, scale });
  }

  move(dx, dy) {
    const view = this.picture?.view;
    if (view) this.place({ x: view.x + dx / view.scale, y: view.y + dy / view.scale, scale: view.scale });
  }

  /** Take a view, but leave at least the middle of the canvas on the image. */
  place({ x, y, scale }) {
    const [wide, high] = [this.canvas.clientWidth / scale, this.canvas.clientHeight / scale];
    x = Math.min(Math.max(x, -wide / 2), this.size.width - wide / 2);
    y = Math.min(Math.max(y, -high / 2), this.size.height - high / 2);
    this.picture.view = { x, y, scale, whole: false };
    this.moved();
  }

  moved() {
    this.told.moved(this.picture.view);
    this.draw();
  }

  /** The part of the image that is seen, xyxy in whole pixels. */
  seen() {
    const { x, y, scale } = this.picture.view;
    const cut = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      cut(Math.floor(x), this.size.width),
      cut(Math.floor(y), this.size.height),
      cut(Math.ceil(x + this.canvas.clientWidth / scale), this.size.width),
      cut(Math.ceil(y + this.canvas.clientHeight / scale), this.size.height),
    ];
  }

  /** Move so that an object is seen. */
  reveal(object) {
    const [x1, y1, x2, y2] = this.seen();
    const [a, b, c, d] = object.box;
    if (a >= x1 && b >= y1 && c <= x2 && d <= y2) return;
    const { scale } = this.picture.view;
    const x = (a + c) / 2 - this.canvas.clientWidth / scale / 2;
    this.place({ x, y: (b + d) / 2 - this.canvas.clientHeight / scale / 2, scale });
  }

  // ---- drawing

  /** Draw with the next frame of the screen. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const { context, canvas, picture } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!picture?.size || !picture.view) return;
    const ratio = canvas.width / Math.max(1, canvas.clientWidth);
    const { x, y, scale } = picture.view;
    const zoom = scale * ratio;
    context.setTransform(zoom, 0, 0, zoom, -x * zoom, -y * zoom);
    context.imageSmoothingEnabled = scale < 2;
    this.paintImage(1 / zoom);
    const layer = this.look.layer(picture);
    if (layer) {
      context.globalAlpha = this.look.opacity();
      const [x1, y1, x2, y2] = layer.box;
      context.drawImage(layer.bitmap, x1, y1, x2 - x1, y2 - y1);
      context.globalAlpha = 1;
    }
    if (this.look.masks()) this.paintObjects(1 / scale);
    this.mark(this.focused, 1 / scale, 4);
    this.mark(this.hovered, 1 / scale, 3);
  }

  /** The image as tiles of a step that fits the zoom, over coarser ones until they are there. */
  paintImage(perPixel) {
    const { context, picture } = this;
    if (picture.preview) context.drawImage(picture.preview, 0, 0, this.size.width, this.size.height);
    let coarsest = 1;
    while (Math.max(this.size.width, this.size.height) / coarsest > 2 * this.tile) coarsest *= 2;
    let step = 1;
    while (2 * step <= perPixel && 2 * step <= coarsest) step *= 2;
    const wanted = [];
    for (let each = coarsest; each >= step; each /= 2) {
      const side = this.tile * each;
      const [x1, y1, x2, y2] = this.seen();
      for (let row = Math.floor(y1 / side); row * side < y2; row += 1)
        for (let column = Math.floor(x1 / side); column * side < x2; column += 1) {
          const key = `${each}/${column}/${row}`;
          const bitmap = picture.tiles.get(key);
          if (bitmap) context.drawImage(bitmap, column * side, row * side, bitmap.width * each, bitmap.height * each);
          else if (bitmap === undefined && (each === coarsest || each === step)) wanted.push(key);
        }
    }
    this.wanted = wanted;
    this.load();
  }

  load() {
    const { picture } = this;
    for (const key of this.wanted) {
      if (this.loading.size >= AT_ONCE) return;
      const mark = `${picture.key}/${key}`;
      if (picture.state !== "done" || picture.tiles.has(key) || this.loading.has(mark)) continue;
      this.loading.add(mark);
      picture
        .ask(`/tiles/${key}`)
        .then(async (answer) => picture.tiles.set(key, await createImageBitmap(await answer.blob())))
        .catch((error) => {
          picture.tiles.set(key, null); // not again
          this.told.failed(error);
        })
        .finally(() => {
          this.loading.delete(mark);
          for (const [old, bitmap] of picture.tiles) {
            if (picture.tiles.size <= MOST_TILES) break;
            picture.tiles.delete(old);
            bitmap?.close();
          }
          this.draw();
        });
    }
  }

  paintObjects(line) {
    const { context } = this;
    const [x1, y1, x2, y2] = this.seen();
    for (const object of this.picture.above(this.look.threshold())) {
      const [a, b, c, d] = object.box;
      if (c < x1 || a > x2 || d < y1 || b > y2) continue;
      const colour = this.look.colour(object);
      if (Math.max(c - a, d - b) < SMALL * line && !object.removed) {
        context.fillStyle = colour;
        context.fillRect(a, b, Math.max(c - a, line), Math.max(d - b, line));
        continue;
      }
      context.lineWidth = 1.5 * line;
      context.strokeStyle = object.removed ? "#9aa4b0" : colour;
      context.setLineDash(object.removed ? [4 * line, 3 * line] : []);
      if (!object.removed) {
        context.fillStyle = colour;
        context.globalAlpha = 0.35;
        context.fill(object.path, "evenodd");
        context.globalAlpha = 1;
      }
      context.stroke(object.path);
    }
    context.setLineDash([]);
  }

  mark(object, line, width) {
    if (!object || object.score < this.look.threshold()) return;
    const { context } = this;
    for (const [colour, extra] of [["#000000", 2], ["#ffffff", 0]]) {
      context.strokeStyle = colour;
      context.lineWidth = (width - 1 + extra) * line;
      context.stroke(object.path);
    }
  }

  // ---- what happens

  /** The smallest object at a point of the canvas, or null. */
  at(px, py) {
    if (!this.picture?.view || !this.look.masks()) return null;
    const { x: left, y: top, scale } = this.picture.view;
    const [x, y] = [left + px / scale, top + py / scale];
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    let best = null;
    for (const object of this.picture.above(this.look.threshold())) {
      const [a, b, c, d] = object.box;
      const near = x >= a - 1 && x <= c + 1 && y >= b - 1 && y <= d + 1;
      if (!near || (best && object.area >= best.area)) continue;
      if (this.context.isPointInPath(object.path, x, y, "evenodd")) best = object;
    }
    return best;
  }

  listen() {
    const { canvas } = this;
    const place = (event) => {
      const frame = canvas.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!this.picture?.view) return;
        event.preventDefault();
        const lines = event.deltaMode === 1 ? 16 : 1;
        this.zoom(Math.exp(-event.deltaY * lines * 0.0016), ...place(event));
      },
      { passive: false },
    );
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, place(event));
      this.pressed = this.pointers.size === 1 ? place(event) : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = place(event);
      const before = this.pointers.get(event.pointerId);
      if (before) this.drag(event.pointerId, before, now);
      else this.hover(this.at(...now), now);
    });
    for (const kind of ["pointerup", "pointercancel"])
      canvas.addEventListener(kind, (event) => {
        this.pointers.delete(event.pointerId);
        canvas.classList.remove("moving");
        if (kind === "pointerup" && this.pressed) {
          const object = this.at(...this.pressed);
          if (object) this.told.clicked(object);
        }
        this.pressed = null;
      });
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.focus(null));
  }

  drag(id, before, now) {
    const others = [...this.pointers].filter(([other]) => other !== id);
    this.pointers.set(id, now);
    if (others.length) {
      const [, [ox, oy]] = others[0];
      const distance = ([x, y]) => Math.hypot(x - ox, y - oy) || 1;
      this.zoom(distance(now) / distance(before), (now[0] + ox) / 2, (now[1] + oy) / 2);
      return;
    }
    if (this.pressed && Math.hypot(now[0] - this.pressed[0], now[1] - this.pressed[1]) < CLICK) return;
    this.pressed = null;
    this.canvas.classList.add("moving");
    this.move(before[0] - now[0], before[1] - now[1]);
  }

  hover(object, at) {
    this.canvas.classList.toggle("object", Boolean(object));
    const changed = object !== this.hovered;
    this.hovered = object;
    this.told.hovered(object, at);
    if (changed) this.draw();
  }

  focus(object) {
    this.focused = object;
    if (object) this.reveal(object);
    this.draw();
  }

  key(event) {
    if (!this.picture?.view || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 60;
    const ways = {
      "+": () => this.zoom(STEP),
      "=": () => this.zoom(STEP),
      "-": () => this.zoom(1 / STEP),
      0: () => this.fit(),
      1: () => this.zoom(1 / this.picture.view.scale),
      ArrowLeft: () => this.move(-step, 0),
      ArrowRight: () => this.move(step, 0),
      ArrowUp: () => this.move(0, -step),
      ArrowDown: () => this.move(0, step),
      n: () => this.next(1),
      p: () => this.next(-1),
      Enter: () => this.focused && this.told.clicked(this.focused),
      Delete: () => this.focused && this.told.clicked(this.focused),
      Escape: () => this.focus(null),
    };
    const way = ways[event.key] ?? ways[event.key.toLowerCase()];
    if (!way) return;
    event.preventDefault();
    way();
  }

  /** Focus the next object, or the one before, of those that are shown. */
  next(way) {
    const shown = this.picture.above(this.look.threshold());
    if (!shown.length) return;
    const now = shown.indexOf(this.focused);
    const then = now < 0 ? (way > 0 ? 0 : shown.length - 1) : (now + way + shown.length) % shown.length;
    this.focus(shown[then]);
    this.told.focused(shown[then], then + 1, shown.length);
  }
}
