"use strict";
// Points of all runs, score against one cost. Hover: the policy. Pick two (click, or Enter): what differs by layer.
// The picked points stand in the address after "#" as "first,second", so that a view can be sent to somebody.
(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const box = document.getElementById("explore");
  const svgSpace = "http://www.w3.org/2000/svg";
  const size = { width: 960, height: 420, left: 70, right: 20, top: 12, bottom: 46 };
  let metric = data.metrics[0];
  let picked = [];

  const element = (name, attributes = {}, text = "") => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const shape = (name, attributes, text = "") => {
    const made = document.createElementNS(svgSpace, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  };
  const short = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const title = (point) => `${data.runs[point.run].name}, ${point.source} #${point.number}`;
  const cost = (point, chosen = metric) => point.costs[chosen.key] / chosen.factor;

  const level = (point) => Math.max(point.score, data.low);

  const range = (values) => {
    const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  };
  const steps = (low, high) => {
    const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
    const found = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) found.push(tick);
    return found;
  };

  const draw = () => {
    const shown = data.points.filter((point) => metric.key in point.costs);
    const svg = document.getElementById("explore-plot");
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    if (!shown.length) return;
    const [x0, x1] = range(shown.map((point) => cost(point))), [y0, y1] = range(shown.map(level));
    const x = (value) => size.left + ((value - x0) / (x1 - x0)) * (size.width - size.left - size.right);
    const y = (value) => size.height - size.bottom - ((value - y0) / (y1 - y0)) * (size.height - size.top - size.bottom);
    for (const tick of steps(x0, x1)) {
      svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: size.top, y2: size.height - size.bottom, class: "grid" }));
      svg.append(shape("text", { x: x(tick), y: size.height - size.bottom + 16, "text-anchor": "middle" }, short(tick)));
    }
    for (const tick of steps(y0, y1)) {
      svg.append(shape("line", { x1: size.left, x2: size.width - size.right, y1: y(tick), y2: y(tick), class: "grid" }));
      svg.append(shape("text", { x: size.left - 7, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    const middle = (size.left + size.width - size.right) / 2;
    svg.append(shape("text", { x: middle, y: size.height - 6, "text-anchor": "middle" }, metric.label));
    svg.append(shape("text", { x: 14, y: size.height / 2, "text-anchor": "middle",
      transform: `rotate(-90 14 ${size.height / 2})` }, data.axis));
    data.points.forEach((point, index) => {
      if (!(metric.key in point.costs)) return;
      const circle = shape("circle", { cx: x(cost(point)), cy: y(level(point)), r: point.answer ? 8 : 5,
        fill: data.runs[point.run].color, tabindex: 0, role: "button", "data-index": index,
        class: `point${point.answer ? " answer" : ""}${picked.includes(index) ? " picked" : ""}${
          point.score < data.low ? " below" : ""}` });
      circle.append(shape("title", {}, `${title(point)}: ${short(point.score)}, ${metric.label} ${short(cost(point))}`));
      circle.addEventListener("mouseenter", () => show(index));
      circle.addEventListener("focus", () => show(index));
      circle.addEventListener("click", () => pick(index));
      circle.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(index); });
      svg.append(circle);
    });
  };

  const table = (headings, rows) => {
    const made = element("table"), head = element("tr"), body = element("tbody");
    headings.forEach((heading, index) => head.append(element("th", index ? {} : { class: "text" }, heading)));
    for (const row of rows) {
      const line = element("tr");
      row.forEach((cell, index) => line.append(element("td", index ? {} : { class: "text" }, cell)));
      body.append(line);
    }
    const top = element("thead");
    top.append(head);
    made.append(top, body);
    return made;
  };
  const summary = (points) => [
    [data.axis, ...points.map((point) => short(point.score))],
    ...data.metrics.map((one) => [one.label, ...points.map((p) => (one.key in p.costs ? short(cost(p, one)) : "–"))]),
  ];

  const show = (index) => {
    if (picked.length === 2) return;
    const point = data.points[index], panel = document.getElementById("explore-policy");
    const formats = point.policy.map(([layer, weight, activation]) => [layer, weight, activation]);
    panel.replaceChildren(element("h3", {}, title(point)), table(["", "value"], summary([point])),
      table(["layer", "weights", "activations"], formats));
  };

  const difference = () => {
    const [a, b] = picked.map((index) => data.points[index]), panel = document.getElementById("explore-policy");
    const other = new Map(b.policy.map(([layer, ...formats]) => [layer, formats.join(" / ")]));
    const mine = new Map(a.policy.map(([layer, ...formats]) => [layer, formats.join(" / ")]));
    const layers = [...new Set([...mine.keys(), ...other.keys()])];
    const rows = layers.map((layer) => [layer, mine.get(layer) ?? "–", other.get(layer) ?? "–"])
      .filter(([, first, second]) => first !== second);
    const count = rows.length ? `${rows.length} of ${layers.length} layers differ` : "The same formats everywhere";
    panel.replaceChildren(element("h3", {}, `${title(a)} and ${title(b)}`),
      table(["", title(a), title(b)], summary([a, b])), element("p", { id: "explore-count" }, `${count}.`),
      ...(rows.length ? [table(["layer", "first: weights / activations", "second"], rows)] : []));
  };

  const pick = (index) => {
    picked = picked.includes(index) ? picked.filter((one) => one !== index) : [...picked.slice(-1), index];
    history.replaceState(null, "", picked.length ? `#${picked.join(",")}` : " ");
    draw();
    if (picked.length === 2) difference();
    else show(index);
  };

  const choice = document.getElementById("explore-metric");
  for (const one of data.metrics) choice.append(element("option", { value: one.key }, one.label));
  choice.addEventListener("change", () => {
    metric = data.metrics.find((one) => one.key === choice.value);
    draw();
  });
  const legend = document.getElementById("explore-runs");
  for (const run of data.runs) {
    const entry = element("span", { class: "run" }, run.name), mark = shape("svg", { viewBox: "0 0 12 12", width: 12 });
    mark.append(shape("circle", { cx: 6, cy: 6, r: 5, fill: run.color }));
    entry.prepend(mark);
    legend.append(entry);
  }
  const wanted = location.hash.slice(1).split(",").map(Number);
  picked = wanted.filter((index) => location.hash && Number.isInteger(index) && index in data.points).slice(0, 2);
  draw();
  if (picked.length === 2) difference();
  else if (picked.length) show(picked[0]);
  box.hidden = false;
})();
