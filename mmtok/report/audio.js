const SHOWN = [["distillmos", "DistillMOS", 2], ["pesq_wb", "PESQ", 2], ["stoi", "STOI", 3]];

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
  caption(figure.caption, sound.label, detail);
}

const rows = gallery(figure, (sample) => `${sample.key} · ${sample.seconds} s`, "row sounds");
for (const { sample, original } of rows) {
  fill(original, sample.original, numbers(sample.original.values), `the original of ${sample.key}`);
}

function show(step) {
  for (const { sample, ours, anchors } of rows) {
    const sound = sample.lengths[step];
    fill(ours, sound, numbers(sound.values), `${sample.key} from ${sound.label}`);
    sample.anchors.forEach((anchor, i) => {
      const other = anchor.sounds[anchor.pick[step]];
      fill(anchors[i], other, numbers(other.values).replace(" kbps", ` kbps${times(other, sound)}`),
        `${sample.key} as ${other.label}`);
    });
  }
}

follow(show, (chosen) => `${chosen.kbps.toFixed(2)} kilobits per second`, (chosen) => `${chosen.kbps.toFixed(2)} kbps`);
