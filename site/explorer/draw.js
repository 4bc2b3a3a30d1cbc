// Photos as numbers, and maps over photos.

export const SIDE = 384; // of a photo, in pixels

/** A square photo from a picture of any size: its middle. */
export function square(image) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const short = Math.min(image.width, image.height);
  const [x, y] = [(image.width - short) / 2, (image.height - short) / 2];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, SIDE, SIDE);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, x, y, short, short, 0, 0, SIDE, SIDE);
  return canvas;
}

/** A photo as side x side means of its pixels, normalised to -1 ... 1, channels first. */
export function pixels(photo, side) {
  const data = photo.getContext("2d").getImageData(0, 0, SIDE, SIDE).data;
  const step = SIDE / side, out = new Float32Array(3 * side * side);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const to = Math.floor(y / step) * side + Math.floor(x / step), from = 4 * (y * SIDE + x);
      for (let c = 0; c < 3; c++) out[c * side * side + to] += data[from + c];
    }
  }
  return out.map((sum) => sum / (step * step) / 127.5 - 1);
}

/** A dim grey copy, on which colours are seen. */
export function dimmed(photo) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0);
  const image = context.getImageData(0, 0, SIDE, SIDE), d = image.data;
  for (let i = 0; i < d.length; i += 4) {
    d[i] = d[i + 1] = d[i + 2] = 12 + 0.42 * (0.3 * d[i] + 0.59 * d[i + 1] + 0.11 * d[i + 2]);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export const POSITIVE = [255, 196, 0], NEGATIVE = [80, 170, 255];

/** Weights of a query over a dimmed photo; `most` has the full colour. */
export function drawMap(canvas, background, weights, side, most, query) {
  const small = new OffscreenCanvas(side, side), image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const share = Math.min(1, Math.abs(weights[i]) / most);
    image.data.set(weights[i] < 0 ? NEGATIVE : POSITIVE, 4 * i);
    image.data[4 * i + 3] = 245 * share;
  }
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(background, 0, 0);
  context.drawImage(small, 0, 0, SIDE, SIDE);
  if (query) drawQuery(context, side, query);
}

/** The square of a query [row, column]. */
export function drawQuery(context, side, [row, column]) {
  const step = SIDE / side, margin = Math.max(0, (20 - step) / 2); // large enough to be found
  const box = [column * step - margin, row * step - margin, step + 2 * margin, step + 2 * margin];
  for (const [width, color] of [[7, "#000"], [3, "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.strokeRect(...box);
  }
}
