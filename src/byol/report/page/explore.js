"use strict";
// The explorer: the map, what is picked, found and selected.
(async () => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const part = (id) => document.getElementById(id);
  const canvas = document.querySelector("canvas"), tip = document.querySelector(".tip"), said = part("said");
  const say = (line) => { said.textContent = line; };

  const ask = async (path, body) => {
    const answer = await fetch(path, body === undefined ? {} : { method: "POST", body });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return answer;
  };
  const attempt = (work) => async (...given) => {
    try { say(""); await work(...given); } catch (error) { say(error.message); }
  };

  const bytes = await (await ask("points")).arrayBuffer();
  const num = about.points;
  const columns = new Float32Array(bytes, 0, 2 * num), xy = new Float32Array(2 * num);
  for (let i = 0; i < num; i++) { xy[2 * i] = columns[i]; xy[2 * i + 1] = columns[num + i]; }
  const rows = new Int32Array(bytes, 8 * num, num), group = new Int32Array(bytes, 12 * num, num);
  const pointOf = new Map();
  rows.forEach((row, i) => pointOf.set(row, i));
  const colours = groupColours(about.groups.length);

  const image = (row, name) => {
    const picture = new Image();
    picture.alt = name;
    picture.title = name;
    picture.onload = () => picture.classList.toggle("small", picture.naturalWidth < 48);
    picture.src = `thumbnail/${row}`;
    return picture;
  };

  const hover = (point, x, y) => {
    tip.hidden = point === null;
    if (point === null) return;
    const row = rows[point];
    if (tip.dataset.row !== String(row)) {
      tip.dataset.row = row;
      const picture = image(row, "");
      picture.className = "picture";
      const name = document.createElement("span");
      name.textContent = group[point] < 0 ? `row ${row}` : about.groups[group[point]];
      tip.replaceChildren(picture, name);
    }
    tip.style.left = `${Math.max(0, Math.min(x + 16, canvas.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 16, canvas.clientHeight - tip.offsetHeight - 4))}px`;
  };

  const grid = (holder, items, limit) => {
    holder.replaceChildren(...items.slice(0, limit).map((item) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.row = item.row;
      const distance = item.distance === undefined ? "" : `, distance ${item.distance.toFixed(3)}`;
      button.append(image(item.row, `${item.label ? `${item.label}: ` : ""}${item.path ?? `row ${item.row}`}${distance}`));
      button.addEventListener("click", () => pick(item.row));
      return button;
    }));
  };

  const points = (items) => items.map((item) => pointOf.get(item.row)).filter((point) => point !== undefined);

  const pick = attempt(async (row) => {
    const found = await (await ask(`row/${row}`)).json();
    const picture = part("picked").querySelector("img");
    picture.onload = () => picture.classList.toggle("small", picture.naturalWidth < 100);
    picture.src = `picture/${row}`;
    picture.alt = found.path;
    part("picked-title").textContent = found.label === null ? "Image" : found.label;
    part("picked").querySelector(".name").textContent = `${found.path} (row ${row})`;
    part("picked").hidden = false;
    part("found-title").textContent = "Nearest neighbours";
    part("found").hidden = found.neighbours.length === 0;
    grid(part("found").querySelector(".grid"), found.neighbours, 24);
    map.pick(pointOf.get(row) ?? null, points(found.neighbours));
  });

  const search = attempt(async (file) => {
    if (!file) return;
    say("Searching ...");
    const found = await (await ask("search", file)).json();
    say("");
    const picture = part("picked").querySelector("img");
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    part("picked-title").textContent = "Searched for";
    part("picked").querySelector(".name").textContent = file.name;
    part("picked").hidden = false;
    part("found-title").textContent = "Nearest to it";
    part("found").hidden = false;
    grid(part("found").querySelector(".grid"), found, 24);
    map.pick(null, points(found));
  });

  let chosen = [];
  const select = (found) => {
    chosen = found.map((point) => rows[point]);
    map.choose(found.length ? found : null);
    part("chosen").hidden = !found.length;
    part("chosen-title").textContent = `Selected: ${found.length.toLocaleString("en")}`;
    grid(part("chosen").querySelector(".grid"), chosen.map((row) => ({ row })), 40);
    selecting(false);
  };

  const map = new EmbeddingMap(canvas, { xy, group, colours, on: { hover, pick: (point) => point !== null && pick(rows[point]), select } });
  const selecting = (on) => {
    map.selecting = on;
    document.querySelector("[data-do=select]").setAttribute("aria-pressed", String(on));
  };
  const deeds = { in: () => map.zoom(1.5), out: () => map.zoom(1 / 1.5), whole: () => map.whole(), select: () => selecting(!map.selecting) };
  document.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", deeds[button.dataset.do]));

  part("export").addEventListener("click", attempt(async () => {
    const list = await (await ask("list", JSON.stringify(chosen))).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(list);
    link.download = `${about.name.replace(/\.parquet$/, "")}-selected.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }));
  part("clear").addEventListener("click", () => select([]));
  part("query").addEventListener("change", (event) => search(event.target.files[0]));
  const drop = document.querySelector("label.drop");
  for (const name of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") search(event.dataTransfer.files[0]);
    });
  }

  const counts = new Int32Array(about.groups.length);
  group.forEach((each) => { if (each >= 0) counts[each]++; });
  const legend = document.querySelector(".legend");
  const keys = about.groups.map((name, i) => {
    const item = document.createElement("li"), button = document.createElement("button"), dot = document.createElement("i");
    button.type = "button";
    button.title = "show or hide";
    dot.className = "dot";
    dot.style.background = colours[i];
    button.append(dot, `${name} (${counts[i].toLocaleString("en")})`);
    const show = () => button.setAttribute("aria-pressed", String(!map.hidden.has(i)));
    button.addEventListener("click", () => { map.toggle(i); show(); });
    show();
    item.append(button);
    legend.append(item);
    return show;
  });
  const every = (hide) => {
    map.hidden = new Set(hide ? about.groups.keys() : []);
    keys.forEach((show) => show());
    map.draw();
  };
  part("all").addEventListener("click", () => every(false));
  part("none").addEventListener("click", () => every(true));
  document.body.dataset.ready = "yes";
})();
