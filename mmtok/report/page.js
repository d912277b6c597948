"use strict";
const { steps, start, samples } = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("length");
const state = document.getElementById("state");

function element(tag, className, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  parent.append(node);
  return node;
}

function figure(row, className) {
  const node = element("figure", className, row);
  return { image: element("img", "", node), strip: null, caption: element("figcaption", "", node) };
}

function numbers(values) {
  const parts = [`${values.bytes.toLocaleString("en")} bytes`];
  if ("psnr" in values) parts.push(`${values.psnr.toFixed(2)} dB`);
  for (const net of ["alex", "vgg"]) {
    if (`lpips_${net}` in values) parts.push(`LPIPS ${net} ${values[`lpips_${net}`].toFixed(3)}`);
  }
  return parts.join(" · ");
}

function fill(figure, name, detail, src, alt, strip) {
  if (strip) {
    if (!figure.strip) {
      figure.strip = element("img", "strip", figure.caption.parentNode);
      figure.caption.parentNode.insertBefore(figure.strip, figure.caption);
    }
    figure.strip.src = strip;
    figure.strip.alt = `${alt}, frames side by side`;
  }
  if (figure.image.getAttribute("src") !== src) figure.image.src = src;
  figure.image.alt = alt;
  figure.caption.replaceChildren();
  element("b", "", figure.caption).textContent = name;
  figure.caption.append(document.createElement("br"), detail);
}

const rows = samples.map((sample) => {
  const block = element("article", "sample", document.getElementById("gallery"));
  element("h3", "", block).textContent = sample.key;
  const row = element("div", "row", block);
  const original = figure(row, "");
  fill(original, "original", `${sample.raw.toLocaleString("en")} bytes raw`, sample.original, `Original of ${sample.key}`,
    sample.strip);
  return { sample, ours: figure(row, "ours"), anchors: sample.anchors.map(() => figure(row, "")) };
});

function show(step) {
  const chosen = steps[step];
  slider.value = step;
  slider.setAttribute("aria-valuetext", `${chosen.label}, ${Math.round(chosen.bytes)} bytes`);
  state.replaceChildren();
  element("b", "", state).textContent = chosen.label;
  state.append(` · ${chosen.bytes.toFixed(1)} bytes · ${chosen.bpp.toFixed(4)} bpp · ${chosen.quality}`);
  for (const { sample, ours, anchors } of rows) {
    const picture = sample.lengths[step];
    fill(ours, picture.label, numbers(picture.values), picture.src, `${sample.key} from ${picture.label}`,
      picture.strip);
    sample.anchors.forEach((anchor, i) => {
      const other = anchor.pictures[anchor.pick[step]];
      const ratio = other.values.bytes / picture.values.bytes;
      const times = ratio > 1.15 || ratio < 0.87 ? ` (${ratio.toFixed(1)}× ours)` : "";
      fill(anchors[i], other.label, numbers(other.values).replace(" bytes", ` bytes${times}`), other.src,
        `${sample.key} as ${other.label}`, other.strip);
    });
  }
  for (const node of document.querySelectorAll("[data-step]")) {
    node.classList.toggle("on", Number(node.dataset.step) === step);
  }
}

function fromAddress() {
  const match = /^#length=(\d+)$/.exec(location.hash);
  show(match ? Math.min(Number(match[1]), steps.length - 1) : start);
}

slider.addEventListener("input", () => {
  show(Number(slider.value));
  history.replaceState(null, "", `#length=${slider.value}`);
});
addEventListener("hashchange", fromAddress);
fromAddress();
