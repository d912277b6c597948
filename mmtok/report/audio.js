"use strict";
const { steps, start, samples } = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("length");
const state = document.getElementById("state");
const SHOWN = [["distillmos", "DistillMOS", 2], ["pesq_wb", "PESQ", 2], ["stoi", "STOI", 3]];

function element(tag, className, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  parent.append(node);
  return node;
}

function figure(row, className) {
  const node = element("figure", className, row);
  const image = element("img", "spectrogram", node);
  const player = element("audio", "", node);
  player.controls = true;
  player.preload = "none";
  image.addEventListener("click", () => (player.paused ? player.play() : player.pause()));
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
  });
  return { image, player, caption: element("figcaption", "", node) };
}

function numbers(values) {
  const parts = "kbps" in values ? [`${values.kbps.toFixed(2)} kbps`] : [];
  for (const [key, name, digits] of SHOWN) {
    if (key in values) parts.push(`${name} ${values[key].toFixed(digits)}`);
  }
  return parts.join(" · ");
}

function fill(figure, sound, detail, name) {
  if (figure.image.getAttribute("src") !== sound.image) figure.image.src = sound.image;
  figure.image.alt = `Spectrogram of ${name}`;
  figure.player.setAttribute("aria-label", name);
  if (figure.player.getAttribute("src") !== sound.src) {
    // a sound that is playing goes on at the same place, so that rates can be compared by ear
    const { paused, currentTime } = figure.player;
    figure.player.src = sound.src;
    if (!paused) {
      figure.player.addEventListener("loadedmetadata", () => { figure.player.currentTime = currentTime; }, { once: true });
      figure.player.play().catch(() => {});
    }
  }
  figure.caption.replaceChildren();
  element("b", "", figure.caption).textContent = sound.label;
  figure.caption.append(document.createElement("br"), detail);
}

const rows = samples.map((sample) => {
  const block = element("article", "sample", document.getElementById("gallery"));
  element("h3", "", block).textContent = `${sample.key} · ${sample.seconds} s`;
  const row = element("div", "row sounds", block);
  const original = figure(row, "");
  fill(original, sample.original, numbers(sample.original.values), `the original of ${sample.key}`);
  return { sample, ours: figure(row, "ours"), anchors: sample.anchors.map(() => figure(row, "")) };
});

function show(step) {
  const chosen = steps[step];
  slider.value = step;
  slider.setAttribute("aria-valuetext", `${chosen.label}, ${chosen.kbps.toFixed(2)} kilobits per second`);
  state.replaceChildren();
  element("b", "", state).textContent = chosen.label;
  state.append(` · ${chosen.kbps.toFixed(2)} kbps · ${chosen.quality}`);
  for (const { sample, ours, anchors } of rows) {
    const sound = sample.lengths[step];
    fill(ours, sound, numbers(sound.values), `${sample.key} from ${sound.label}`);
    sample.anchors.forEach((anchor, i) => {
      const other = anchor.sounds[anchor.pick[step]];
      const ratio = other.values.bytes / sound.values.bytes;
      const times = ratio > 1.15 || ratio < 0.87 ? ` (${ratio.toFixed(1)}× ours)` : "";
      fill(anchors[i], other, numbers(other.values).replace(" kbps", ` kbps${times}`), `${sample.key} as ${other.label}`);
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
