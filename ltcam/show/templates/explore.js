"use strict";
// PICTURES, DELTAS, METHODS, FUSED come from data.js: what ltcam/show/explorer.py made. Nothing is computed here but colors.
const $ = (id) => document.getElementById(id);
const canvas = $("picture"), pen = canvas.getContext("2d");
const decoded = new Map(); // data URL -> promise of its ImageData
const percent = (value) => value.toFixed(1) + "%";

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

function settings() {
  const picture = PICTURES[$("image").value], fused = FUSED[$("stages").value - 1];
  const layers = $("alone").checked ? fused.slice(0, 2) : fused; // "S3-S5" -> "S3"
  const delta = Number($("delta").value);
  return { picture, layers, delta, view: picture.views[$("method").value][layers] };
}

// A heatmap in jet and transparent, as matplotlib draws it in the figures; 0 to 127.
function colored(width, height, heat) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const v = 4 * heat(i) / 127;
    [3, 2, 1].forEach((center, k) => { image.data[4 * i + k] = 255 * Math.min(1, Math.max(0, 1.5 - Math.abs(v - center))); });
    image.data[4 * i + 3] = 140;
  }
  const layer = new OffscreenCanvas(width, height);
  layer.getContext("2d").putImageData(image, 0, 0);
  return layer;
}

function outline(width, height, inside, color) {
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside(y * width + x);
  const sx = canvas.width / width, sy = canvas.height / height;
  for (const [stroke, line] of [["rgba(0, 0, 0, 0.7)", 5], [color, 2.5]]) {
    pen.beginPath();
    for (let y = 0; y <= height; y++) {
      for (let x = 0; x <= width; x++) {
        if (at(x, y) !== at(x - 1, y)) { pen.moveTo(x * sx, y * sy); pen.lineTo(x * sx, (y + 1) * sy); }
        if (at(x, y) !== at(x, y - 1)) { pen.moveTo(x * sx, y * sy); pen.lineTo((x + 1) * sx, y * sy); }
      }
    }
    pen.strokeStyle = stroke;
    pen.lineWidth = line;
    pen.stroke();
  }
}

let latest = 0;
async function draw() {
  const turn = ++latest, { picture, layers, delta, view } = settings(), [width, height] = picture.size;
  const [image, sprite, truth] = await Promise.all([picture.image, view.sprite, picture.truth].map(pixels));
  if (turn !== latest) return; // a later move of a slider draws
  const first = delta * width * height, value = (i) => sprite.data[4 * (first + i)];
  canvas.height = Math.round(canvas.width * height / width);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(await createImageBitmap(image), 0, 0, canvas.width, canvas.height);
  if ($("heat").checked) pen.drawImage(colored(width, height, (i) => value(i) & 127), 0, 0, canvas.width, canvas.height);
  if ($("truth").checked) outline(width, height, (i) => truth.data[4 * i] > 127, "#ffe600");
  if ($("mask").checked) outline(width, height, (i) => value(i) > 127, "#ffffff");
  const iou = view.iou[delta], plain = picture.views[$("method").value].S5.iou[0];
  $("iou").textContent = `IoU ${percent(iou)}`;
  $("change").textContent = `${iou < plain ? "−" : "+"}${Math.abs(iou - plain).toFixed(1)} points against S5 without truncation (${percent(plain)})`;
  canvas.setAttribute("aria-label", `${picture.name}, ${picture.class}: ${METHODS[$("method").value]} of ${layers}, ${told(delta)}`);
  curve(view.iou, delta);
}

const told = (delta) => DELTAS[delta] === null ? "no truncation" : `δ = ${DELTAS[delta]}`;

function tag(parent, name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  element.textContent = text;
  parent.append(element);
}

// IoU over delta with these stages; the dashed line is without truncation.
function curve(iou, chosen) {
  const svg = $("curve"), top = Math.max(10, 10 * Math.ceil(Math.max(...iou) / 10));
  const x = (k) => 40 + 27 * k, y = (value) => 100 - 85 * value / top;
  svg.replaceChildren();
  for (const value of [0, top]) {
    tag(svg, "path", { d: `M40 ${y(value)}H312`, class: "axis" });
    tag(svg, "text", { x: 34, y: y(value) + 4, "text-anchor": "end" }, `${value}%`);
  }
  tag(svg, "path", { d: `M40 ${y(iou[0])}H312`, class: "plain" });
  tag(svg, "path", { d: "M" + iou.slice(1).map((value, k) => `${x(k + 1)} ${y(value)}`).join("L"), class: "line" });
  tag(svg, "circle", { cx: x(chosen), cy: y(iou[chosen]), r: 5 });
  DELTAS.forEach((delta, k) => { if (k % 2 === 1 || k === 0) tag(svg, "text", { x: x(k), y: 118, "text-anchor": "middle" }, delta === null ? "none" : delta); });
}

function update() {
  const { layers, delta } = settings();
  $("stages-value").textContent = layers;
  $("stages").setAttribute("aria-valuetext", layers);
  $("delta-value").textContent = told(delta);
  $("delta").setAttribute("aria-valuetext", told(delta));
  draw();
}

for (const data of new Set(PICTURES.map((picture) => picture.data))) {
  const group = $("image").appendChild(document.createElement("optgroup"));
  group.label = data;
  PICTURES.forEach((picture, k) => picture.data === data && group.append(new Option(`${picture.class} (${picture.name})`, k)));
}
Object.entries(METHODS).forEach(([method, name]) => $("method").append(new Option(name, method)));
$("controls").addEventListener("input", update);
$("controls").addEventListener("submit", (event) => event.preventDefault());
update();
