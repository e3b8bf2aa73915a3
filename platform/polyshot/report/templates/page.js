"use strict";
// Draws the plots: their colours are names (see charts.py), and have a value on light and on dark paper.
(() => {
  const okabeIto = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#000000"];
  const light = {
    palette: okabeIto, text: "#14202b", muted: "#566370", grid: "#e3e8ed", line: "#aab4be", surface: "#ffffff",
  };
  const dark = {
    palette: ["#56B4E9", "#E8752A", "#1FBF92", "#D793B8", "#E69F00", "#3D8FC4", "#9A9A9A", "#FFFFFF"],
    text: "#e8edf2", muted: "#a3afba", grid: "#2b353f", line: "#5a6875", surface: "#12181e",
  };
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let printing = matchMedia("print").matches;
  const theme = () => (prefersDark.matches && !printing ? dark : light);

  const colour = (name) => {
    const found = /^@(\w+)(?:\/([\d.]+))?$/.exec(name);
    if (!found) return name;
    const own = theme();
    const hex = /^\d$/.test(found[1]) ? own.palette[Number(found[1])] : own[found[1]];
    if (!found[2]) return hex;
    const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},${found[2]})`;
  };
  // Only where a colour stands: a text that begins with @ is a text.
  const coloured = (value, isColour) => {
    if (typeof value === "string") return isColour ? colour(value) : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, isColour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, coloured(item, /color(s|scale)?$/.test(key))]),
    );
  };

  const axis = () => {
    const own = theme();
    return {
      gridcolor: own.grid, linecolor: own.line, zerolinecolor: own.line, tickcolor: own.line, automargin: true,
      ticks: "outside", ticklen: 4, showline: true, zeroline: false, fixedrange: false,
    };
  };
  const layout = (spec, width) => {
    const own = theme();
    const made = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: own.text },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 12, t: 8, b: 8 }, hovermode: "closest", dragmode: width < 500 ? false : "zoom",
      hoverlabel: { bgcolor: own.surface, bordercolor: own.line, font: { color: own.text }, align: "left" },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
      ...coloured(spec.layout, false),
    };
    for (const name of Object.keys(spec.layout).concat("xaxis", "yaxis")) {
      if (/^[xy]axis\d*$/.test(name)) {
        const chosen = coloured(spec.layout[name] ?? {}, false);
        const title = chosen.title && { ...chosen.title, standoff: 8, font: { size: 12, color: own.muted } };
        made[name] = { ...axis(), ...chosen, ...(title ? { title } : {}) };
      }
    }
    return made;
  };
  const config = {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  };

  const plots = [...document.querySelectorAll("figure.plot")].map((figure) => ({
    canvas: figure.querySelector(".canvas"),
    spec: JSON.parse(figure.querySelector("script").textContent),
  }));
  const draw = () =>
    Promise.all(
      plots.map(({ canvas, spec }) => {
        const room = printing ? canvas.closest("figure").clientWidth : canvas.clientWidth;
        const own = { ...layout(spec, room), ...(printing ? { width: room, height: canvas.clientHeight } : {}) };
        return Plotly.react(canvas, coloured(spec.data, false), own, config);
      }),
    );
  prefersDark.addEventListener("change", draw);
  matchMedia("print").addEventListener("change", (event) => {
    printing = event.matches;
    draw();
  });
  draw().then(() => document.documentElement.setAttribute("data-drawn", String(plots.length)));
})();
