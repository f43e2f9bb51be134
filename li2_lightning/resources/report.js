"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const linked = [];
let following = false;
for (const [id, figure] of Object.entries(figures)) {
  const place = document.getElementById(id);
  Plotly.newPlot(place, figure.data, figure.layout, {
    responsive: true, displaylogo: false, displayModeBar: "hover", typesetMath: false,
    showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  });
  place.on("plotly_click", event => {
    const target = event.points[0].customdata;
    if (typeof target === "string") window.location.href = target;
  });
  if (!figure.layout.meta) continue;
  linked.push(place);
  // One zoom for every curve over the step.
  place.on("plotly_relayout", change => {
    if (following) return;
    const update = change["xaxis.autorange"] ? {"xaxis.autorange": true}
      : "xaxis.range[0]" in change ? {"xaxis.range": [change["xaxis.range[0]"], change["xaxis.range[1]"]]} : null;
    if (!update) return;
    following = true;
    Promise.all(linked.filter(other => other !== place).map(other => Plotly.relayout(other, update)))
      .finally(() => { following = false; });
  });
}

const frames = JSON.parse(document.getElementById("film").textContent);
if (frames.length) {
  const slider = document.getElementById("film-slider");
  slider.addEventListener("input", () => {
    const frame = frames[slider.valueAsNumber];
    document.getElementById("film-frame").src = frame.src;
    document.getElementById("film-step").textContent = frame.step;
  });
}
