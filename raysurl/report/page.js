"use strict";
// Figures, tables that can be sorted, and the cue of what can be scrolled. Nothing here asks for anything outside.
const page = { drawn: [] };

// Text of CSS variables, so that charts have the colours of the page, light or dark.
page.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

page.template = () => {
  const c = page.colour;
  const axis = {
    gridcolor: c("--grid"), linecolor: c("--line"), zerolinecolor: c("--line"),
    tickfont: { color: c("--soft"), size: 11 }, title: { font: { color: c("--soft"), size: 12 }, standoff: 8 },
  };
  return {
    layout: {
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12, color: c("--text") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      colorway: [1, 2, 3, 4, 5, 6].map((i) => c(`--s${i}`)),
      margin: { l: 44, r: 16, t: 10, b: 34 },
      hoverlabel: { bgcolor: c("--card"), bordercolor: c("--line"), font: { color: c("--text"), size: 12 }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 }, bgcolor: "rgba(0,0,0,0)" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: c("--soft"), activecolor: c("--text") },
      // Each axis makes room for its labels in its own direction alone. If both could change both sizes, a label that
      // comes into sight with one size and goes with the other would have a chart drawn again and again.
      xaxis: { ...axis, automargin: "height" }, yaxis: { ...axis, automargin: "width" },
      colorscale: { sequential: [[0, c("--grid")], [1, c("--s1")]] },
    },
  };
};

// `var(--s1)` wherever a figure says so becomes the colour that it is now.
page.coloured = (node) => {
  if (Array.isArray(node)) return node.map(page.coloured);
  if (node && typeof node === "object")
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, page.coloured(value)]));
  const named = typeof node === "string" && /^var\((--[a-z0-9-]+)\)$/.exec(node);
  return named ? page.colour(named[1]) : node;
};

page.touch = matchMedia("(pointer: coarse)").matches;

page.draw = (place) => {
  const given = JSON.parse(place.querySelector("script").textContent);
  const shown = document.createElement("div");
  shown.className = "canvas";
  place.append(shown);
  const make = () => {
    const figure = page.coloured(given);
    const layout = { ...figure.layout, template: page.template(), autosize: true };
    // a finger that scrolls the page must not be caught by a chart
    if (page.touch && !figure.layout.dragmode) layout.dragmode = false;
    const config = { responsive: true, displaylogo: false, displayModeBar: page.touch ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], ...given.config };
    return Plotly.react(shown, figure.data, layout, config);
  };
  page.drawn.push(make);
  return make();
};

page.unpack = async () => {
  const packed = document.getElementById("plotly");
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  packed.replaceWith(script);
};

page.figures = async () => {
  const places = [...document.querySelectorAll(".figure")];
  if (!places.length) return;
  if (!("DecompressionStream" in window)) {
    for (const place of places) place.textContent = "This chart needs a browser of 2023 or later.";
    return;
  }
  await page.unpack();
  if (window.startMap) await window.startMap(page);
  for (const place of places) if (!place.closest(".map")) await page.draw(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.drawn.forEach((make) => make()));
};

// A click on the head of a column sorts by it, as numbers where they are; a second one the other way round.
page.sortable = (table) => {
  const heads = [...table.querySelectorAll("th[scope=col]")];
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const sort = (column) => {
    const down = heads[column].getAttribute("aria-sort") !== "descending";
    const rows = [...body.rows];
    const numbers = rows.every((row) => key(row, column) === "" || !Number.isNaN(Number(key(row, column))));
    const compare = (one, other) => {
      const [a, b] = [key(one, column), key(other, column)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      return down ? -order : order;
    };
    rows.sort(compare).forEach((row) => body.append(row));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
};

// What goes on beyond the right edge fades out there.
page.cue = (box) => {
  const look = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
  look();
};

document.querySelectorAll(".scroll").forEach(page.cue);
document.querySelectorAll("table[data-sort]").forEach(page.sortable);
page.ready = page.figures().then(() => document.documentElement.setAttribute("data-ready", ""));
