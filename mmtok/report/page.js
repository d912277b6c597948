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
  caption(figure.caption, name, detail);
}

const rows = gallery(figure, (sample) => sample.key, "row");
for (const { sample, original } of rows) {
  fill(original, "original", `${sample.raw.toLocaleString("en")} bytes raw`, sample.original, `Original of ${sample.key}`,
    sample.strip);
}

function show(step) {
  for (const { sample, ours, anchors } of rows) {
    const picture = sample.lengths[step];
    fill(ours, picture.label, numbers(picture.values), picture.src, `${sample.key} from ${picture.label}`,
      picture.strip);
    sample.anchors.forEach((anchor, i) => {
      const other = anchor.pictures[anchor.pick[step]];
      fill(anchors[i], other.label, numbers(other.values).replace(" bytes", ` bytes${times(other, picture)}`), other.src,
        `${sample.key} as ${other.label}`, other.strip);
    });
  }
}

follow(show, (chosen) => `${Math.round(chosen.bytes)} bytes`,
  (chosen) => `${chosen.bytes.toFixed(1)} bytes · ${chosen.bpp.toFixed(4)} bpp`);
