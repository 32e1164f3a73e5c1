"use strict";
// The map: points coloured by a menu, the image of a point under the pointer or finger, its neighbours at a click.
window.startMap = async (page) => {
  const box = document.querySelector(".map");
  if (!box) return;
  const about = JSON.parse(box.querySelector("script").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const x = new Float32Array(bytes(about.x)), y = new Float32Array(bytes(about.y));
  const neighbours = new Uint16Array(bytes(about.neighbours)), cosines = new Uint8Array(bytes(about.cosines));
  const colours = about.colours.map((c) => ({ ...c, values: new Int32Array(bytes(c.values)) }));
  const sheet = box.querySelector(".sheet-of-all");
  if (sheet) await sheet.decode();
  const menu = box.querySelector("select"), chosen = box.querySelector(".chosen");
  const place = box.querySelector(".figure"), canvas = document.createElement("div"), tip = document.createElement("div");
  canvas.className = "canvas";
  tip.className = "map-tip";
  tip.hidden = true;
  place.append(canvas, tip);
  colours.forEach((c, i) => menu.append(new Option(c.name, i)));

  const WHEEL = ["#4e79c7", "#e4663f", "#2f9e5f", "#b8a117", "#3fa7c9", "#b34a9c", "#d99022", "#8a6fd1",
    "#7a8b3c", "#d2527f", "#8c6a4f", "#4aa39a"];
  const MOST = 24; // entries of the legend; what comes after is one more
  const small = box.clientWidth < 560;
  const gl = (() => {
    try { return Boolean(document.createElement("canvas").getContext("webgl2") || document.createElement("canvas").getContext("webgl")); }
    catch { return false; }
  })();
  const kind = gl ? "scattergl" : "scatter";
  let marked = [];

  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text) => (text.length > 18 ? `${text.slice(0, 17)}…` : text);
  const word = (c, i) => (c.values[i] < 0 ? "unknown" : c.words[c.values[i]] ?? `${c.values[i]}`);

  const traces = () => {
    const c = colours[menu.value || 0];
    const groups = new Map();
    c.values.forEach((value, i) => {
      const key = value < 0 ? -1 : Math.min(value, MOST);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(i);
    });
    const size = about.count > 6000 ? 4 : about.count > 2500 ? 5 : 7;
    const found = [...groups].sort((a, b) => a[0] - b[0]).map(([key, points]) => ({
      type: kind, mode: "markers", hoverinfo: "none", customdata: points,
      name: escaped(key < 0 ? "unknown" : key === MOST && c.words.length > MOST + 1 ? "all others" : short(c.words[key] ?? `${key}`)),
      x: points.map((i) => x[i]), y: points.map((i) => y[i]),
      marker: { size, opacity: 0.8, line: { width: 0 }, color: key < 0 || key === MOST ? page.colour("--bar")
        : c.name === "error of kNN" ? page.colour(key ? "--good" : "--bad") : WHEEL[key % WHEEL.length] },
    }));
    if (c.name === "error of kNN") found.reverse(); // what is wrong lies on top
    return [...found, {
      type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false,
      x: marked.map((i) => x[i]), y: marked.map((i) => y[i]),
      marker: { symbol: "circle-open", color: page.colour("--text"), size: marked.map((_, n) => (n ? 11 : 16)), line: { width: 2 } },
    }];
  };

  const axis = { showgrid: false, zeroline: false, showticklabels: false, ticks: "", showline: false };
  const layout = () => ({
    template: page.template(), autosize: true, height: place.clientHeight, dragmode: "pan", hovermode: "closest",
    hoverdistance: 12, margin: { l: 0, r: 0, t: 0, b: 0 }, uirevision: "map", xaxis: { ...axis }, yaxis: { ...axis },
    legend: small ? { orientation: "h", x: 0, y: 0, yanchor: "top", font: { size: 11 } }
      : { orientation: "v", x: 1, y: 1, xanchor: "left", yanchor: "top", itemsizing: "constant" },
    showlegend: true,
  });
  const config = { responsive: true, displaylogo: false, scrollZoom: true, displayModeBar: false, doubleClick: "reset" };
  const draw = () => Plotly.react(canvas, traces(), layout(), config);

  // A copy of a thumbnail, `wide` pixels on the page.
  const picture = (i, wide) => {
    const shown = document.createElement("canvas"), side = about.side;
    shown.width = shown.height = side;
    shown.style.width = shown.style.height = `${wide}px`;
    if (side <= 48) shown.className = "tiny";
    const column = i % about.columns, row = Math.floor(i / about.columns);
    shown.getContext("2d").drawImage(sheet, column * side, row * side, side, side, 0, 0, side, side);
    return shown;
  };
  const line = (text, tag = "div") => Object.assign(document.createElement(tag), { textContent: text });
  const label = colours.find((c) => c.name === "class");

  const show = (point) => {
    const i = point.customdata, c = colours[menu.value];
    tip.replaceChildren();
    if (sheet) tip.append(picture(i, Math.max(about.side, 88)));
    if (label) tip.append(line(word(label, i), "b"));
    if (c !== label) tip.append(line(`${c.name}: ${word(c, i)}`));
    if (about.names[i]) tip.append(line(about.names[i], "small"));
    const left = point.xaxis._offset + point.xaxis.d2p(point.x), top = point.yaxis._offset + point.yaxis.d2p(point.y);
    tip.hidden = false;
    const wide = tip.offsetWidth, high = tip.offsetHeight;
    tip.style.left = `${Math.max(0, left + 14 + wide > place.clientWidth ? left - wide - 14 : left + 14)}px`;
    tip.style.top = `${Math.max(0, Math.min(top - high / 2, place.clientHeight - high))}px`;
  };

  const choose = (i) => {
    const near = [...neighbours.subarray(i * about.each, (i + 1) * about.each)];
    marked = [i, ...near];
    draw();
    const row = document.createElement("div");
    row.className = "near-row scroll";
    marked.forEach((j, n) => {
      const one = document.createElement("figure");
      if (n && label && label.values[i] >= 0 && label.values[j] >= 0)
        one.className = label.values[i] === label.values[j] ? "good" : "bad";
      if (sheet) one.append(picture(j, 72));
      one.append(line([n ? (one.className === "good" ? "✓ " : one.className === "bad" ? "✗ " : "") : "", label ? word(label, j) : about.names[j]].join("")));
      one.append(line(n ? (cosines[i * about.each + n - 1] / 100).toFixed(2) : "chosen", "small"));
      one.title = about.names[j];
      one.addEventListener("click", () => choose(j));
      row.append(one);
    });
    chosen.replaceChildren(line(`The nearest neighbours of ${about.names[i] || "the chosen point"}`, "h3"), row);
    page.cue(row);
  };

  await draw();
  canvas.on("plotly_hover", (event) => show(event.points[0]));
  canvas.on("plotly_unhover", () => { tip.hidden = true; });
  canvas.on("plotly_relayouting", () => { tip.hidden = true; });
  canvas.on("plotly_click", (event) => { show(event.points[0]); choose(event.points[0].customdata); });
  menu.addEventListener("change", () => { tip.hidden = true; draw(); });
  box.querySelector("button").addEventListener("click", () =>
    Plotly.relayout(canvas, { "xaxis.autorange": true, "yaxis.autorange": true }));
  page.drawn.push(draw);
  page.map = { choose, menu, canvas, about };
};
