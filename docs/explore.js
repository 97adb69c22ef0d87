"use strict";
// PICTURES, DELTAS, METHODS and FUSED stand before this script, from explorer.py. Filters color the grey sprites.
const $ = (id) => document.getElementById(id);
function set(id, values) { // what stays is left alone: a picture that is set again is loaded again
  for (const [name, value] of Object.entries(values)) if ($(id).getAttribute(name) !== `${value}`) $(id).setAttribute(name, value);
}
const percent = (value) => value.toFixed(1) + "%";
const told = (delta) => DELTAS[delta] === null ? "no truncation" : `δ = ${DELTAS[delta]}`;

// The inner edge, in a color, of where a grey picture is at or above `cut` of 255.
const edge = (id, color, cut) => `<filter id="${id}" filterUnits="userSpaceOnUse" x="0" y="0" width="100%" height="100%"
  color-interpolation-filters="sRGB"><feColorMatrix values="${color.map((c) => `0 0 0 0 ${c}`).join(" ")} 255 0 0 0 ${1 - cut}"
  result="inside"/><feMorphology operator="erode" radius="0.5" result="inner"/><feComposite in="inside" in2="inner" operator="out"/>
  <feDropShadow dx="0" dy="0" stdDeviation="0.3"/></filter>`;

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

function draw() {
  const picture = PICTURES[$("image").value], [width, height] = picture.size, method = $("method").value;
  const fused = FUSED[$("stages").value - 1], layers = $("alone").checked ? fused.slice(0, 2) : fused; // "S3-S5" -> "S3"
  const delta = Number($("delta").value), view = picture.views[method][layers], plain = picture.views[method].S5.iou[0];
  for (const [slider, said] of [["stages", layers], ["delta", told(delta)]]) {
    $(`${slider}-value`).textContent = said;
    set(slider, { "aria-valuetext": said });
  }
  const label = `${picture.name}, ${picture.class}: ${method} of ${layers}, ${told(delta)}`;
  set("picture", { viewBox: `0 0 ${width} ${height}`, "aria-label": label });
  set("photo", { href: picture.image, width, height });
  set("truth-layer", { href: picture.truth, width, height });
  set("sprite", { href: view.sprite, width, height: height * DELTAS.length }); // a frame for each delta, one below the other
  set("frame", { viewBox: `0 ${delta * height} ${width} ${height}`, width, height });
  $("edges").innerHTML = edge("truth-edge", [1, 0.9, 0], 128) + edge("mask-edge", [1, 1, 1], view.cut[delta]);
  for (const name of ["heat", "truth", "mask"]) $(`${name}-layer`).style.display = $(name).checked ? "" : "none";
  const iou = view.iou[delta], change = `${iou < plain ? "−" : "+"}${Math.abs(iou - plain).toFixed(1)}`;
  $("iou").textContent = `IoU ${percent(iou)}`;
  $("change").textContent = `${change} points against S5 without truncation (${percent(plain)})`;
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
