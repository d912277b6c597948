"use strict";
// What every report shares: the data, the slider with its address, captions. Each page says what a step shows.
const { steps, start, samples } = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("length");

function element(tag, className, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  parent.append(node);
  return node;
}

function caption(node, name, detail) {
  node.replaceChildren();
  element("b", "", node).textContent = name;
  node.append(document.createElement("br"), detail);
}

// " (2.0× ours)" where a codec could not come near the size of ours
function times(other, ours) {
  const ratio = other.values.bytes / ours.values.bytes;
  return ratio > 1.15 || ratio < 0.87 ? ` (${ratio.toFixed(1)}× ours)` : "";
}

// one article a sample: the original, ours, and a figure for each codec
function gallery(figure, title, rowClass) {
  return samples.map((sample) => {
    const block = element("article", "sample", document.getElementById("gallery"));
    element("h3", "", block).textContent = title(sample);
    const row = element("div", rowClass, block);
    const original = figure(row, "");
    return { sample, original, ours: figure(row, "ours"), anchors: sample.anchors.map(() => figure(row, "")) };
  });
}

// show(step) draws a step; spoken and written give its size for the slider and for the line below
function follow(show, spoken, written) {
  const choose = (step) => {
    const chosen = steps[step];
    slider.value = step;
    slider.setAttribute("aria-valuetext", `${chosen.label}, ${spoken(chosen)}`);
    const state = document.getElementById("state");
    state.replaceChildren();
    element("b", "", state).textContent = chosen.label;
    state.append(` · ${written(chosen)} · ${chosen.quality}`);
    show(step);
    for (const node of document.querySelectorAll("[data-step]")) {
      node.classList.toggle("on", Number(node.dataset.step) === step);
    }
  };
  const fromAddress = () => {
    const match = /^#length=(\d+)$/.exec(location.hash);
    choose(match ? Math.min(Number(match[1]), steps.length - 1) : start);
  };
  slider.addEventListener("input", () => {
    choose(Number(slider.value));
    history.replaceState(null, "", `#length=${slider.value}`);
  });
  addEventListener("hashchange", fromAddress);
  fromAddress();
}
