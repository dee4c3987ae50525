// The histogram of areas.

const SVG = "http://www.w3.org/2000/svg";
const BINS = 24;
const [WIDTH, HEIGHT, FLOOR] = [300, 96, 78];

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Draw how many of the areas (in pixels) lie in each of equal ranges; returns the summary in words. */
export function drawAreas(svg, areas) {
  svg.replaceChildren(shape("line", { x1: 0, x2: WIDTH, y1: FLOOR + 0.5, y2: FLOOR + 0.5 }));
  if (!areas.length) return "No objects, so no areas";
  const sorted = [...areas].sort((a, b) => a - b);
  const [least, most] = [sorted[0], sorted.at(-1)];
  const step = Math.max(1, Math.ceil((most + 1) / BINS));
  const counts = new Array(BINS).fill(0);
  for (const area of areas) counts[Math.floor(area / step)] += 1;
  const top = Math.max(...counts);
  counts.forEach((count, n) => {
    if (!count) return;
    const height = Math.max(1.5, (count / top) * (FLOOR - 14));
    const bar = shape("rect", { x: (n * WIDTH) / BINS + 0.75, width: WIDTH / BINS - 1.5, y: FLOOR - height, height });
    bar.append(shape("title", {}, `${n * step} to ${(n + 1) * step - 1} px: ${count}`));
    svg.append(bar);
  });
  const end = (step * BINS).toLocaleString();
  svg.append(shape("text", { x: 0, y: HEIGHT - 5 }, "0"));
  svg.append(shape("text", { x: WIDTH, y: HEIGHT - 5, "text-anchor": "end" }, `${end} px`));
  svg.append(shape("text", { x: 0, y: 10 }, `${top.toLocaleString()} ${top === 1 ? "object" : "objects"}`));
  const median = sorted[Math.floor(sorted.length / 2)];
  return `Areas from ${least.toLocaleString()} to ${most.toLocaleString()} px, median ${median.toLocaleString()}`;
}
