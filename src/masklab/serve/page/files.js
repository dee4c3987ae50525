// Files that are chosen or dropped, with those of folders.

const IMAGE = /\.(png|jpe?g|jpe|jfif|tiff?|bmp|gif|webp|jp2|p[pgn]m|svs|ndpi|scn|btf|tf8)$/i;
const TYPES = new Set(["png", "jpeg", "tiff", "bmp", "gif", "webp", "jp2"].map((kind) => `image/${kind}`));

/** The media type that a file is sent as; what it is, the server finds out. */
export const typeOf = (file) => (TYPES.has(file.type) ? file.type : "application/octet-stream");

/** All files of a drop, those of dropped folders included. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return { files: [...transfer.files], fromFolder: false };
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return { files: found, fromFolder: entries.some((entry) => entry.isDirectory) };
}

async function collect(entry, found) {
  if (entry.isFile) {
    found.push(await new Promise((done, fail) => entry.file(done, fail)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return;
    for (const each of some) await collect(each, found);
  }
}

/** The files of a folder that are images by their names, in order; files that were chosen one by one are all meant. */
export function imagesOf({ files, fromFolder }) {
  const images = files.filter((file) => !file.name.startsWith(".") && (!fromFolder || IMAGE.test(file.name)));
  images.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  return { images, others: files.length - images.length };
}
