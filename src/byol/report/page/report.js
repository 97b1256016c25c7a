"use strict";
// The maps of a report: their tips, legends and buttons.
for (const holder of document.querySelectorAll("[data-map]")) {
  const data = JSON.parse(document.getElementById(`map-${holder.dataset.map}`).textContent);
  const bytes = Uint8Array.from(atob(data.xy), (letter) => letter.charCodeAt(0));
  const colours = groupColours(data.names.length);
  const tip = holder.querySelector(".tip"), canvas = holder.querySelector("canvas");
  const hover = (row, x, y) => {
    tip.hidden = row === null;
    if (row === null) return;
    const picture = document.createElement("span");
    picture.className = "picture";
    const scale = 80 / data.side;
    picture.style.backgroundImage = `url(${data.sprite})`;
    picture.style.backgroundSize = `${data.columns * 80}px auto`;
    picture.style.backgroundPosition = `${-(row % data.columns) * data.side * scale}px ${-Math.floor(row / data.columns) * data.side * scale}px`;
    const name = document.createElement("span");
    name.textContent = data.group[row] < 0 ? data.paths[row] : `${data.names[data.group[row]]}: ${data.paths[row]}`;
    tip.replaceChildren(picture, name);
    const left = Math.min(canvas.offsetLeft + x + 16, holder.clientWidth - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${canvas.offsetTop + Math.max(0, Math.min(y + 16, canvas.clientHeight - tip.offsetHeight - 4))}px`;
  };
  const map = new EmbeddingMap(canvas, {
    xy: new Float32Array(bytes.buffer), group: Int32Array.from(data.group), colours, on: { hover, pick: (row) => map.pick(row) },
  });
  holder.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", () => {
    if (button.dataset.do === "whole") map.whole(); else map.zoom(button.dataset.do === "in" ? 1.5 : 1 / 1.5);
  }));
  const legend = holder.querySelector(".legend");
  data.names.slice(0, 60).forEach((name, i) => {
    const item = document.createElement("li"), button = document.createElement("button"), dot = document.createElement("i");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "show or hide";
    dot.className = "dot";
    dot.style.background = colours[i];
    button.append(dot, name);
    button.addEventListener("click", () => { map.toggle(i); button.setAttribute("aria-pressed", String(!map.hidden.has(i))); });
    item.append(button);
    legend.append(item);
  });
}
