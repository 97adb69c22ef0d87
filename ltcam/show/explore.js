"use strict";
// PICTURES, DELTAS, METHODS and FUSED stand before this script: ltcam/show/explorer.py made them. Only colors are computed here.
const $ = (id) => document.getElementById(id);
const canvas = $("picture"), pen = canvas.getContext("2d");
const decoded = new Map(); // data URL -> promise of its ImageData
const percent = (value) => value.toFixed(1) + "%";
const told = (delta) => DELTAS[delta] === null ? "no truncation" : `δ = ${DELTAS[delta]}`;

function pixels(url) {
  if (!decoded.has(url)) {
    const image = new Image();
    image.src = url;
    decoded.set(url, image.decode().then(() => {
      const copy = new OffscreenCanvas(image.width, image.height).getContext("2d");
      copy.drawImage(image, 0, 0);
      return copy.getImageData(0, 0, image.width, image.height);
    }));
  }
  return decoded.get(url);
}

// A heatmap in jet and transparent, as matplotlib draws it in the figures; 0 to 255.
function colored(width, height, heat) {
  const image = new ImageData(width, height), layer = new OffscreenCanvas(width, height);
  for (let i = 0; i < width * height; i++) {
    const colors = [3, 2, 1].map((center) => 255 * Math.min(1, Math.max(0, 1.5 - Math.abs(4 * heat(i) / 255 - center))));
    image.data.set([...colors, 140], 4 * i);
  }
  layer.getContext("2d").putImageData(image, 0, 0);
  return layer;
}

function outline(width, height, inside, color) {
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside(y * width + x);
  const path = new Path2D(), sx = canvas.width / width, sy = canvas.height / height;
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (at(x, y) !== at(x - 1, y)) { path.moveTo(x * sx, y * sy); path.lineTo(x * sx, (y + 1) * sy); }
      if (at(x, y) !== at(x, y - 1)) { path.moveTo(x * sx, y * sy); path.lineTo((x + 1) * sx, y * sy); }
    }
  }
  for (const [stroke, line] of [["rgba(0, 0, 0, 0.7)", 5], [color, 2.5]]) {
    pen.strokeStyle = stroke;
    pen.lineWidth = line;
    pen.stroke(path);
  }
}

// IoU over delta with these stages; the dashed line is without truncation.
function curve(iou, chosen) {
  const top = Math.max(10, 10 * Math.ceil(Math.max(...iou) / 10)), x = (k) => 40 + 27 * k, y = (value) => 100 - 85 * value / top;
  const text = (left, below, said, anchor) => `<text x="${left}" y="${below}" text-anchor="${anchor}">${said}</text>`;
  const axes = [0, top].map((value) => `<path d="M40 ${y(value)}H312"/>` + text(34, y(value) + 4, value + "%", "end"));
  const ticks = DELTAS.map((delta, k) => k % 2 || !k ? text(x(k), 118, delta ?? "none", "middle") : "");
  const line = iou.slice(1).map((value, k) => `${x(k + 1)} ${y(value)}`).join("L");
  $("curve").innerHTML = axes.join("") + ticks.join("") + `<path class="plain" d="M40 ${y(iou[0])}H312"/>` +
    `<path class="line" d="M${line}"/><circle cx="${x(chosen)}" cy="${y(iou[chosen])}" r="5"/>`;
}

let latest = 0;
async function draw() {
  const turn = ++latest, picture = PICTURES[$("image").value], method = $("method").value, delta = Number($("delta").value);
  const fused = FUSED[$("stages").value - 1], layers = $("alone").checked ? fused.slice(0, 2) : fused; // "S3-S5" -> "S3"
  const [width, height] = picture.size, view = picture.views[method][layers], iou = view.iou[delta], plain = picture.views[method].S5.iou[0];
  for (const [slider, said] of [["stages", layers], ["delta", told(delta)]]) {
    $(`${slider}-value`).textContent = said;
    $(slider).setAttribute("aria-valuetext", said);
  }
  const [image, sprite, truth] = await Promise.all([picture.image, view.sprite, picture.truth].map(pixels));
  if (turn !== latest) return; // a later move of a slider draws
  const value = (i) => sprite.data[4 * (delta * width * height + i)];
  canvas.height = Math.round(canvas.width * height / width);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(await createImageBitmap(image), 0, 0, canvas.width, canvas.height);
  if ($("heat").checked) pen.drawImage(colored(width, height, value), 0, 0, canvas.width, canvas.height);
  if ($("truth").checked) outline(width, height, (i) => truth.data[4 * i] > 127, "#ffe600");
  if ($("mask").checked) outline(width, height, (i) => value(i) >= view.cut[delta], "#ffffff");
  $("iou").textContent = `IoU ${percent(iou)}`;
  $("change").textContent = `${iou < plain ? "−" : "+"}${Math.abs(iou - plain).toFixed(1)} points against S5 without truncation (${percent(plain)})`;
  canvas.setAttribute("aria-label", `${picture.name}, ${picture.class}: ${method} of ${layers}, ${told(delta)}`);
  curve(view.iou, delta);
}

for (const data of new Set(PICTURES.map((picture) => picture.data))) {
  const group = $("image").appendChild(document.createElement("optgroup"));
  group.label = data;
  PICTURES.forEach((picture, k) => picture.data === data && group.append(new Option(`${picture.class} (${picture.name})`, k)));
}
METHODS.forEach((method) => $("method").append(new Option(method)));
$("controls").addEventListener("input", draw);
$("controls").addEventListener("submit", (event) => event.preventDefault());
draw();
